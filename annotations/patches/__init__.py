"""Labelled patches: sampled, labelled, tabled, split and stored."""
