"""Where the scale of a slide comes from, and what makes no sense."""

import pytest

from lrmil_cli.errors import InputError
from lrmil_cli.slides.mpp import parse_number, resolve_mpp
from lrmil_cli.slides.ome import ome_images

OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels PhysicalSizeX="{x}" '
    'PhysicalSizeXUnit="{u}" PhysicalSizeY="{x}" PhysicalSizeYUnit="{u}"/></Image></OME>'
)


def test_metadata_option_manifest_in_that_order_of_weight():
    assert resolve_mpp("0.25", "0.25", where="s").source == "metadata"
    assert resolve_mpp("0.25", "0.25", where="s", manifest=0.3).mpp == 0.3
    both = resolve_mpp("0.25", "0.25", where="s", manifest=0.3, option=0.4)
    assert (both.mpp, both.source) == (0.4, "option")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0,4990", 0.499), (" 0.25 ", 0.25), (0.5, 0.5), ("n/a", None), ("nan", None), (None, None), ("inf", None)],
)
def test_numbers_as_scanners_write_them(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize("nonsense", [352.858, 264.6, 0.0, 0.01, -0.5])
def test_a_screen_resolution_is_not_an_mpp(nonsense):
    with pytest.raises(InputError, match="--slide-mpp"):
        resolve_mpp(nonsense, nonsense, where="s.svs")


def test_missing_mpp_names_the_option_and_what_the_objective_suggests():
    with pytest.raises(InputError, match=r"s\.svs.*--slide-mpp.*40x, often 0.25"):
        resolve_mpp(None, None, where="s.svs", objective="40")


def test_anisotropic_pixels():
    assert resolve_mpp(0.50, 0.505, where="s").mpp == pytest.approx(0.5025)
    with pytest.raises(InputError, match="not square"):
        resolve_mpp(0.50, 0.55, where="s")


@pytest.mark.parametrize(("x", "unit", "um"), [("0.5", "µm", 0.5), ("500", "nm", 0.5), ("0.0005", "mm", 0.5)])
def test_ome_units(x, unit, um):
    (image,) = ome_images(OME.format(x=x, u=unit))
    assert (image.mpp_x, image.mpp_y) == pytest.approx((um, um))


def test_ome_that_says_nothing():
    assert ome_images("<OME/>") == ome_images("not xml") == ome_images(None) == []
    assert ome_images("<!DOCTYPE a [<!ENTITY x 'y'>]><OME/>") == []
