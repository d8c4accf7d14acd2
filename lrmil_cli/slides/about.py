"""What a slide is, for ``lrmil info`` and ``lrmil doctor``: images, levels, coding, who reads it and why, its scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrmil_cli.errors import NoScaleError
from lrmil_cli.slides.slide import open_slide


def describe_slide(
    path: str | Path, *, slide_mpp: float | None = None, reader: str | None = None, image: int | None = None
) -> dict[str, Any]:
    """All that is known of a slide, one without a scale included.

    Raises:
        InputError: the file is no slide, or cannot be read; MachineError: it needs OpenSlide, which is not installed.
    """
    missing = None
    try:
        slide = open_slide(path, slide_mpp=slide_mpp, reader=reader, image=image)
    except NoScaleError as e:
        missing = str(e)
        slide = open_slide(path, slide_mpp=1.0, reader=reader, image=image)
    with slide:
        source, facts = slide.source, slide.source.facts
        known = missing is None
        levels = [
            {
                "level": i,
                "width": l.width,
                "height": l.height,
                "downsample": round(l.downsample, 4),
                **({} if l.downsample_x == l.downsample_y else {"along_y": round(l.downsample_y, 4)}),
                **({"mpp": round(slide.mpp * l.downsample, 4)} if known else {}),
            }
            for i, l in enumerate(slide.levels)
        ]
        about: dict[str, Any] = {"kind": "slide", "reader": slide.reader, "why": source.choice.why, **slide.describe()}
        if not known:
            about |= {"mpp": None, "mpp_source": None, "mpp_missing": (missing or "").removeprefix(f"{path}: ")}
        elif slide.mpp_source == "metadata":
            about["mpp_from"] = source.mpp[2]
        about |= {"format": facts.format, "objective": slide.objective}
        if facts.format == "TIFF":
            about |= {"compression": facts.compression_name, "colours": facts.colours_name}
            about |= {"samples": facts.samples, "bits": facts.bits}
        about |= {"images": source.images, "image": source.image, "notes": slide.notes}
        return {**about, "levels": levels}
