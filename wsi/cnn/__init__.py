"""The convolutional network: the only place that imports torch."""
