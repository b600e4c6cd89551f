"""Annotation files: ASAP XML, GeoJSON and ImageScope XML."""
