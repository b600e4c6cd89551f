"""Slides in, artefacts out, resumable."""
