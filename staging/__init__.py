"""From lesions to kappa."""
