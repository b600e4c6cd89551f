"""Patches of slides, read many at a time and fed to a network."""
