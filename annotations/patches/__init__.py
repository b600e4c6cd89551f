"""Labelled patches: looked for, labelled, tabled, split and stored."""
