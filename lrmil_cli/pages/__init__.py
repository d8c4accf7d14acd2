"""Pages to look at after ``predict``: an index of the slides, and a page a slide."""
