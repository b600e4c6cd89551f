"""The convolutional network: the only package that imports torch."""
