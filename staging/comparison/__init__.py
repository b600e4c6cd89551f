"""Ways to label slides, compared by the same folds."""
