"""One file for each endpoint, or for a few small ones."""
