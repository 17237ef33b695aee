"""The variational autoencoder: mathematics, network, data, training and evaluation; nothing here knows of HTTP."""
