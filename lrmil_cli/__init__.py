"""lrmil: slide classification at low magnification, distilled from high magnification."""

__version__ = "0.1.0"
