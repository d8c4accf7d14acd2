"""``lrmil demo``: placeholder, replaced below."""


def demo() -> None:
    pass
