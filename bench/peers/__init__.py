"""Other servers with the same network: each in its own process, from its own virtual environment."""
