"""The model file: written, read, checked."""
