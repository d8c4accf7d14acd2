"""MIL aggregation heads behind one interface. A new head: one file here, and its name below (heads/README 7)."""

# Importing a head registers it.
from lrmil_cli.heads import abmil, clam, dmin, dsmil, dtfd, pooling, transmil, zoommil  # noqa: F401
from lrmil_cli.heads.base import (
    Apart,
    Bag,
    MILHead,
    MILOutput,
    PyramidBag,
    build_head,
    head_defaults,
    head_names,
    head_sources,
    head_table,
    register,
)

__all__ = [
    "Apart",
    "Bag",
    "MILHead",
    "MILOutput",
    "PyramidBag",
    "build_head",
    "head_defaults",
    "head_names",
    "head_sources",
    "head_table",
    "register",
]
