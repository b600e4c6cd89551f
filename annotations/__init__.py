"""Polygons to pixels to patches."""
