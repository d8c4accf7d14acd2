"""The science: cross-resolution distillation of the encoder, slide-level distillation of the head."""
