"""What would go wrong, said before it does: checks of the machine, of slides, of models (``lrmil doctor``)."""
