"""The slides that ``lrmil demo`` makes: painted, with a known lesion."""
