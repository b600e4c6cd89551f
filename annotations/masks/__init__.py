"""Annotations painted into mask files."""
