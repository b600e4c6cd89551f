"""Patches of a cohort, and networks made of them."""
