"""LR and HR tiles of one slide."""
