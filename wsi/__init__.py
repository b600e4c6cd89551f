"""One slide, up to its heatmap."""
