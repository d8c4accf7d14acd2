"""What a slide's file is called: the suffixes of slide formats, and the id that a name gives."""

from __future__ import annotations

from pathlib import PurePath

TIFF_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".btf", ".qptiff")
OPENSLIDE_SUFFIXES = (".mrxs", ".dcm", ".vms", ".vmu", ".svslide")
#: What a folder is searched for; a file that is named is opened whatever its suffix says.
SLIDE_SUFFIXES = TIFF_SUFFIXES + OPENSLIDE_SUFFIXES

#: Pictures that hold a mask of the tissue. JPEG is none of them: it makes black grey.
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")

#: Suffixes before the last one that belong to the format and not to the name.
INNER_SUFFIXES = (".ome",)


def slide_id_of(path: str | PurePath) -> str:
    """The id of a slide file: its name without the suffix of a slide format. Other dots are part of the name.

    ``TCGA-A1-A0SB-01Z-00-DX1.1a2b.svs`` and the same name without ``.svs`` are one id, ``case.ome.tif`` is ``case``.
    """
    name = path.replace("\\", "/").rpartition("/")[2] if isinstance(path, str) else path.name
    for suffixes in (SLIDE_SUFFIXES, INNER_SUFFIXES):
        ending = next((s for s in suffixes if name.lower().endswith(s) and len(name) > len(s)), "")
        if not ending:
            break
        name = name[: len(name) - len(ending)]
    return name
