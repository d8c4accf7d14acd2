"""LRMIL: cross-resolution distillation of the encoder (stage 1), slide-level distillation of the head (stage 2)."""
