"""Training of MIL heads: loop, folds, early stopping, metrics."""
