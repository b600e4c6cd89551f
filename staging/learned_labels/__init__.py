"""The slide label learned from heatmaps."""
