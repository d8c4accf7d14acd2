"""Who reads a file: chosen by what the file is, never by its name. The table in words: slides/README 1.1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TIFFSLIDE, OPENSLIDE = "tiffslide", "openslide"
READERS = ("auto", TIFFSLIDE, OPENSLIDE)

#: Numbers of compressions in TIFF by name; others are said as numbers.
COMPRESSIONS = {
    1: "none",
    2: "CCITT",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    33003: "JPEG 2000 (33003)",
    33004: "JPEG 2000 (33004)",
    33005: "JPEG 2000 (33005)",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34926: "zstd",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "zstd",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
#: How colours are given in TIFF, by number.
COLOURS = {
    0: "gray, white is 0",
    1: "gray",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "colour filter array",
    34892: "linear raw",
}
_JPEG = (6, 7, 34892)
#: Colour codes whose samples are RGB or gray once they are decoded.
_PLAIN = (1, 2)
_YCBCR = 6
#: Aperio's JPEG 2000 in YCbCr; the number is all that says so.
_YCBCR_JPEG2000 = 33003
#: What may be decoded at once, in bytes: two of these are held for each thread.
MAX_BLOCK_BYTES = 256_000_000
#: In the description of slides that ``lrmil demo`` paints.
PAINTED = "(lrmil demo)"


@dataclass(frozen=True)
class Facts:
    """What a file is.

    Attributes:
        format: ``TIFF``, ``DICOM`` or ``other``; vendor: as its metadata says.
        compression, photometric: TIFF's numbers; samples, bits, kind: a pixel's, ``kind`` as numpy's (``u``, ``f``).
        extra: TIFF's ExtraSamples; planar, tiled: how pixels are laid out; codec: whether there is a decoder for it.
        block_bytes: the largest block once it is decoded; whole: whether every level's pages are of the size they say.
        channels: names of more colours than RGB has, in pages of their own; planes: focal planes.
        painted: made by ``lrmil demo``, of no tissue.
    """

    format: str
    vendor: str = "unknown"
    compression: int = 1
    photometric: int = 2
    samples: int = 3
    bits: int = 8
    kind: str = "u"
    extra: tuple[int, ...] = ()
    planar: bool = False
    tiled: bool = True
    codec: bool = True
    block_bytes: int = 0
    channels: tuple[str, ...] = ()
    planes: int = 1
    painted: bool = False

    @property
    def compression_name(self) -> str:
        return COMPRESSIONS.get(self.compression, f"compression {self.compression}")

    @property
    def colours_name(self) -> str:
        return COLOURS.get(self.photometric, f"photometric {self.photometric}")


@dataclass(frozen=True)
class Choice:
    """Who reads a file, and why."""

    reader: str
    why: str


#: From what a TIFF is to who reads it and why; the first that holds decides.
RULES: tuple[tuple[Callable[[Facts], bool], str, str], ...] = (
    (lambda f: f.format != "TIFF", OPENSLIDE, "{f.format} is no TIFF"),
    (lambda f: f.vendor in ("ventana", "trestle"), OPENSLIDE, "the tiles of {f.vendor} overlap, OpenSlide places them"),
    (lambda f: f.vendor == "leica", OPENSLIDE, "Leica's regions lie apart, OpenSlide places them"),
    (lambda f: f.vendor == "philips", OPENSLIDE, "Philips pads its levels, OpenSlide knows by how much"),
    (
        lambda f: f.compression == _YCBCR_JPEG2000,
        OPENSLIDE,
        "JPEG 2000 in YCbCr (33003), which tifffile takes for RGB",
    ),
    (
        lambda f: f.photometric == _YCBCR and f.compression not in _JPEG,
        OPENSLIDE,
        "YCbCr that is not JPEG, which tifffile hands out as it is",
    ),
    (
        lambda f: f.photometric not in (*_PLAIN, _YCBCR),
        OPENSLIDE,
        "colours are {f.colours_name}, which tifffile hands out as they are",
    ),
    (lambda f: not f.codec, OPENSLIDE, "tifffile cannot decode {f.compression_name}"),
)


def choose(facts: Facts) -> Choice:
    """Who reads a file of these facts."""
    for holds, reader, why in RULES:
        if holds(facts):
            return Choice(reader, why.format(f=facts))
    return Choice(TIFFSLIDE, f"TIFF, {facts.compression_name}, {facts.colours_name}")


def refusal(facts: Facts) -> str | None:
    """Why nobody can make 8-bit RGB of a TIFF, with what to do; None where somebody may."""
    if facts.channels:
        names = ", ".join(n or "unnamed" for n in facts.channels[:8])
        return (
            f"{len(facts.channels)} channels ({names}), as of fluorescence; lrmil reads stains in RGB or gray: export "
            "one as RGB"
        )
    if facts.format == "TIFF" and facts.kind != "u":
        return f"samples are {facts.bits}-bit {_KINDS.get(facts.kind, facts.kind)}; export the slide as 8-bit RGB"
    if facts.format == "TIFF" and not 8 <= facts.bits <= 16 and facts.photometric in (0, *_PLAIN):
        return f"samples have {facts.bits} bits; export the slide as 8-bit RGB"
    if facts.photometric == 0 and facts.bits > 8:
        return f"gray of {facts.bits} bits in which white is 0; export the slide as 8-bit RGB"
    if facts.photometric == 1 and facts.samples > 3:
        return (
            f"{facts.samples} samples a pixel that are tagged as gray, as channels of fluorescence are; export the "
            "slide as RGB"
        )
    if facts.block_bytes > MAX_BLOCK_BYTES:
        return (
            f"its pixels are in {'tiles' if facts.tiled else 'strips'} of {facts.block_bytes / 1e9:.2g} GB, each of "
            "which must be decoded at once; convert it (`vips tiffsave IN OUT --tile --pyramid --compression jpeg`)"
        )
    return None


_KINDS = {"f": "floating-point numbers", "i": "signed numbers", "c": "complex numbers", "b": "truth values"}
