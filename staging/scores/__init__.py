"""Truth against prediction."""
