"""Pyramids and heatmaps written as BigTIFF, whole or only with the tiles needed."""
