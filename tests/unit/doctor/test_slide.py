"""What is said of slides whose scale or pixels are wrong, and where is looked."""

import numpy as np

from lrmil_cli.doctor.check import FAIL, PASS, WARN
from lrmil_cli.doctor.slide import _places, check_slide
from lrmil_cli.slides.slide import open_slide
from lrmil_cli.slides.tiles import TileSettings, find_tissue
from tests.conftest import blob_image, write_tiff


def by_name(checks):
    return {c.name: c for c in checks}


def test_scale_and_damage_of_a_slide(tmp_path):
    import tifffile

    silent = by_name(check_slide(write_tiff(tmp_path / "silent.tiff", blob_image(), mpp=None), TileSettings()))
    assert silent["opens"].status == PASS and silent["mpp"].status == FAIL and "--slide-mpp" in silent["mpp"].fix
    about = "Aperio Image Library (test)\n1600x1200|AppMag = 40|MPP = 0.5"
    wrong = by_name(check_slide(write_tiff(tmp_path / "wrong.svs", blob_image(), description=about), TileSettings()))
    assert wrong["mpp"].status == WARN and "40x" in wrong["mpp"].found
    path = write_tiff(tmp_path / "bad.svs", blob_image())
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        blocks = list(zip(page.dataoffsets, page.databytecounts))[1:-1]
    with open(path, "r+b") as fh:  # all of level 0 but its corners, which are looked at when opening
        for offset, count in blocks:
            fh.seek(offset)
            fh.write(b"\xff" * count)
    bad = by_name(check_slide(path, TileSettings()))
    assert bad["opens"].status == PASS and bad["damage"].status == FAIL and "level 0" in bad["damage"].found
    assert by_name(check_slide(tmp_path / "no.svs", TileSettings()))["opens"].found == "no such file"


def test_places_lie_inside_and_on_tissue(slide):
    with open_slide(slide) as s:
        tissue = find_tissue(s, TileSettings().tissue)
        at = np.array(_places(s, 0, tissue, 30))
        assert (at >= 0).all() and (at <= [s.width - 256, s.height - 256]).all() and 15 < len(at) <= 30
        centre = ((at + 128) / (tissue.scale_x, tissue.scale_y)).astype(int)
        assert tissue.mask[centre[:, 1], centre[:, 0]].mean() > 0.5
