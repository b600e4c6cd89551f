"""A patient's pN-stage."""
