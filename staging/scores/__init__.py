"""Scores: predictions against truth."""
