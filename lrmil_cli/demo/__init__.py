"""The slides that ``lrmil demo`` makes, and the chain it runs on them."""
