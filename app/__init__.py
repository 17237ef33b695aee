"""The service around the model: bytes in, bytes out."""
