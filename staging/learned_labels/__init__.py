"""The slide label that is learned from heatmaps."""
