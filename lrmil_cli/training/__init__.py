"""Training of MIL heads: bags, folds, the loop, recipes, the teacher."""
