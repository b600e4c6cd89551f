"""Encoders made elsewhere: features per tile, and attention heads on them."""
