"""Which pages of a TIFF are one pyramid, and which image is the slide: however the pages are ordered and tagged."""

import cv2
import numpy as np
import pytest
import tifffile

from lrmil_cli.errors import InputError
from lrmil_cli.slides.images import is_level
from lrmil_cli.slides.slide import open_slide
from tests.conftest import blob_image

MPP = 0.5
SLIDE = blob_image(800, 1000)
MACRO = np.full((300, 700, 3), 230, np.uint8)
PIXELS = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}


def shrunk(factor, image=SLIDE):
    size = image.shape[1] // factor, image.shape[0] // factor
    return image if factor == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write(path, pages):
    """A generic TIFF of (image, options) pages."""
    with tifffile.TiffWriter(path) as out:
        for image, options in pages:
            out.write(image, metadata=None, **{**PIXELS, **options})
    return path


def scale(factor):
    return {"resolution": (1e4 / MPP / factor,) * 2, "resolutionunit": "CENTIMETER"}


def pyramid(factors, **options):
    return [(shrunk(f), {"subfiletype": int(f > 1), **scale(f), **options}) for f in factors]


ORDERS = {
    "as it should be": (pyramid((1, 2, 4)), 0),
    "out of order": (pyramid((1, 4, 2)), 0),
    "smallest first": (pyramid((4, 2, 1)), 0),
    "no type of subfile": (pyramid((1, 2, 4), subfiletype=0), 0),
    "no scale of its own": (pyramid((1, 2, 4), resolution=(20000, 20000)), 0),
    "other codecs": ([*pyramid((1,)), *pyramid((2, 4), compression="lzw", tile=(128, 128))], 0),
    "factors 1, 5, 25": (pyramid((1, 5, 25)), 0),
    "factors 1, 8": (pyramid((1, 8)), 0),
    "a macro first": ([(MACRO, {}), *pyramid((1, 2, 4))], 1),
    "a small macro in strips first": ([(MACRO, {"tile": None}), *pyramid((1, 2, 4))], 1),
    "a macro in tiles between": ([*pyramid((1,)), (MACRO, {"subfiletype": 9}), *pyramid((2, 4))], 0),
    "a thumbnail in strips between": ([*pyramid((1,)), (shrunk(3), {"tile": None}), *pyramid((2, 4))], 0),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_largest_pyramid_is_the_slide_and_none_of_its_levels_is_lost(tmp_path, name):
    pages, chosen = ORDERS[name]
    factors = {"factors 1, 5, 25": [1, 5, 25], "factors 1, 8": [1, 8]}.get(name, [1, 2, 4])
    with open_slide(write(tmp_path / "s.tif", pages)) as slide:
        assert [l.downsample for l in slide.levels] == factors and slide.source.image == chosen
        assert slide.mpp == pytest.approx(MPP) and slide.read_as == ({"image": chosen} if chosen else {})
        for level, factor in enumerate(factors):
            assert np.array_equal(slide.read(level, 10, 10, 20, 20), shrunk(factor)[10:30, 10:30])


def test_aperio_without_or_with_a_thumbnail_and_with_tiled_pictures_beside(tmp_path):
    about = f"Aperio Image Library v12\n800x1000 (64x64)|AppMag = 20|MPP = {MPP}"
    base, small = (SLIDE, {"description": about}), (shrunk(4), {"description": about})
    thumb = (shrunk(3), {"tile": None})
    beside = [
        (np.full((200, 190, 3), 9, np.uint8), {"description": "Aperio\nlabel 190x200"}),
        (MACRO, {"description": "Aperio\nmacro 700x300"}),
    ]
    for number, pages in enumerate(([base, small], [base, small, thumb], [base, thumb, small, *beside])):
        with open_slide(write(tmp_path / f"{number}.svs", pages)) as slide:
            assert [l.downsample for l in slide.levels] == [1, 4] and slide.vendor == "aperio" and not slide.notes
    assert [i["kind"] for i in slide.source.images] == ["slide", "thumbnail", "label", "macro"]


def test_two_sections_are_said_and_either_can_be_read(tmp_path):
    other = np.ascontiguousarray(SLIDE[::-1])
    path = write(tmp_path / "s.tif", [*pyramid((1, 2)), (other, scale(1)), (shrunk(2, other), scale(2))])
    with open_slide(path) as slide:
        assert len(slide.levels) == 2 and slide.read_as == {}
        assert len(slide.notes) == 1 and "image 1 of 800 x 1000 px" in slide.notes[0] and "--image" in slide.notes[0]
        first = slide.read(0, 100, 100, 300, 500)
    with open_slide(path, image=1) as slide:
        assert len(slide.levels) == 2 and slide.read_as == {"image": 1} and not slide.notes
        assert np.array_equal(slide.read(0, 100, 100, 300, 500), other[100:600, 100:400])
        assert np.array_equal(slide.read(1, 50, 50, 100, 100), shrunk(2, other)[50:150, 50:150])
    assert np.array_equal(first, SLIDE[100:600, 100:400])
    with pytest.raises(InputError, match="no image 2; it has 2"):
        open_slide(path, image=2)


def ome(path, images):
    """An OME-TIFF of (image, name, um per pixel or None, factors of its levels) images."""
    with tifffile.TiffWriter(path, ome=True) as out:
        for image, name, mpp, factors in images:
            size = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            out.write(image, subifds=len(factors), metadata={"axes": "YXS", "Name": name, **size}, **PIXELS)
            for factor in factors:
                out.write(shrunk(factor, image), subfiletype=1, **PIXELS)
    return path


@pytest.mark.parametrize("macro_mpp", [None, 16.5, MPP])
def test_an_ome_slide_behind_its_macro(tmp_path, macro_mpp):
    large = np.full((1100, 900, 3), 240, np.uint8)  # more pixels than the slide, but it is called what it is
    path = ome(
        tmp_path / "s.ome.tif",
        [(large, "macro image", macro_mpp, ()), (MACRO, "x", None, ()), (SLIDE, "", MPP, (2, 4))],
    )
    with open_slide(path) as slide:
        assert (slide.width, slide.height, slide.mpp) == (800, 1000, MPP) and slide.source.image == 2
        assert [l.downsample for l in slide.levels] == [1, 2, 4]
        assert np.array_equal(slide.read(2, 5, 5, 100, 100), shrunk(4)[5:105, 5:105])
    assert [i["kind"] for i in slide.source.images] == ["macro", "slide", "slide"]


XML = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
    'DimensionOrder="{order}" Type="uint8" SizeX="{x}" SizeY="1000" SizeC="{c}" SizeZ="{z}" SizeT="{t}" '
    'PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel SamplesPerPixel="3"/>{data}</Pixels></Image></OME>'
)
PLAIN = {"order": "XYCZT", "x": 800, "c": 3, "z": 1, "t": 1, "data": "<TiffData/>"}


@pytest.mark.parametrize(
    "wrong", [{}, {"z": 2}, {"t": 3}, {"c": 6}, {"x": 1600}, {"data": ""}, {"data": '<TiffData IFD="5"/>'}]
)
def test_ome_xml_of_planes_that_are_not_in_the_file(tmp_path, wrong):
    """As one part of a slide in several files has it: what is there is read."""
    path = write(tmp_path / "s.ome.tif", [(SLIDE, {"description": XML.format(**{**PLAIN, **wrong})})])
    with open_slide(path) as slide:
        assert (slide.width, slide.height, slide.mpp) == (800, 1000, 0.5)
        assert np.array_equal(slide.read(0, 300, 300, 64, 64), SLIDE[300:364, 300:364])


@pytest.mark.parametrize(("order", "z", "t", "plane"), [("XYCZT", 3, 1, 1), ("XYCTZ", 3, 2, 2), ("XYCZT", 3, 2, 1)])
def test_of_focal_planes_the_middle_one_is_read_and_that_is_said(tmp_path, order, z, t, plane):
    planes = [np.full((200, 160, 3), 10 * k, np.uint8) for k in range(z * t)]
    about = XML.format(**{**PLAIN, "order": order, "z": z, "t": t})
    pages = [(p, {"description": about if not k else None}) for k, p in enumerate(planes)]
    with open_slide(write(tmp_path / "s.ome.tif", pages)) as slide:
        assert slide.read(0, 0, 0, 1, 1)[0, 0, 0] == 10 * plane and len(slide.source.images) == 1
        assert "focal planes" in slide.notes[0]


def test_sizes_that_are_levels_and_sizes_that_are_not():
    assert is_level((2220, 2967), (1110, 1483)) and is_level((2220, 2967), (277, 370))
    assert is_level((5000, 5000), (715, 715)) and is_level((5000, 5000), (1, 1))
    assert not is_level((2220, 2967), (2220, 2967))  # of the same size: another image
    assert not is_level((2220, 2967), (387, 463)) and not is_level((2220, 2967), (1280, 431))
