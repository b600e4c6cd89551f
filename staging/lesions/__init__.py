"""Lesions: found on heatmaps, masks and annotations, measured in um, labelled."""
