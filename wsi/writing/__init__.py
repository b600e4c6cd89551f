"""Pyramids and heatmaps written as BigTIFF, all or only the tiles that are wanted."""
