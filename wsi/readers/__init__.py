"""One module per kind of file, one protocol for all."""
