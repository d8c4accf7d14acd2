"""Other people's formats and readers: what they write opens here, what we write opens there, pixels are the same."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile

from lrmil_cli.slides.reader import overview, read_tile
from lrmil_cli.slides.samples import to_rgb8
from lrmil_cli.slides.slide import open_slide
from tests.conftest import SHARED, blob_image, needs_shared, write_tiff

FORMATS = {
    "aperio-jpeg": ("s.svs", {"compression": "jpeg", "compressionargs": {"level": 95}}, {}),
    "aperio-deflate": ("s.svs", {}, {}),
    "lzw": ("s.svs", {"compression": "lzw"}, {}),
    "zstd": ("s.svs", {"compression": "zstd"}, {}),
    "jpeg2000": ("s.svs", {"compression": "jpeg2000"}, {}),
    "small blocks": ("s.svs", {"tile": (128, 128)}, {}),
    "ome": ("s.ome.tiff", {}, {"ome": True}),
    "one level": ("s.svs", {}, {"levels": (1,)}),
    "many levels": ("s.svs", {}, {"levels": (1, 2, 4, 8)}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_open_with_their_scale_and_pixels(tmp_path, name):
    file, options, more = FORMATS[name]
    image = blob_image(1400, 1000)
    path = write_tiff(tmp_path / file, image, mpp=0.5, **options, **more)
    with open_slide(path) as slide:
        assert (slide.width, slide.height, slide.mpp, slide.mpp_source) == (1400, 1000, pytest.approx(0.5), "metadata")
        tile = read_tile(slide, 0, 512, 256, 256, 256, 256)
        lossy = "jpeg" in name
        assert np.abs(tile.astype(int) - image[256:512, 512:768]).max() <= (60 if lossy else 0)
        edge = slide.read(0, 1390, 990, 20, 20)
        assert (edge[10:] == 255).all() and (edge[:, 10:] == 255).all()  # past the slide it is white
        assert np.abs(edge[:10, :10].astype(int) - image[990:, 1390:]).max() <= (60 if lossy else 0)


def test_generic_tiff_takes_its_scale_from_the_resolution_tag(tmp_path):
    path = write_tiff(
        tmp_path / "g.tiff", blob_image(), mpp=None, resolution=(1e4 / 0.25, 1e4 / 0.25), resolutionunit="CENTIMETER"
    )
    with open_slide(path) as slide:
        assert slide.mpp == pytest.approx(0.25, rel=1e-4)


def test_a_screen_resolution_is_refused_and_bigtiff_opens(tmp_path):
    from lrmil_cli.errors import InputError

    path = write_tiff(tmp_path / "g.tiff", blob_image(), mpp=None, resolution=(72, 72), resolutionunit="INCH")
    with pytest.raises(InputError, match="screen resolution"):
        open_slide(path)
    with tifffile.TiffWriter(tmp_path / "b.tiff", bigtiff=True) as tw:
        tw.write(blob_image(), tile=(256, 256), photometric="rgb", metadata=None)
    with open_slide(tmp_path / "b.tiff", slide_mpp=0.5) as slide:
        assert slide.mpp_source == "option" and slide.width == 1600


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((2, 2), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 2, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 2, 3), 0x1234, np.uint16), [0x12] * 3),
        (np.dstack([np.full((2, 2, 3), 100, np.uint8), np.zeros((2, 2), np.uint8)]), [255] * 3),
        (np.dstack([np.full((2, 2, 3), 100, np.uint8), np.full((2, 2), 255, np.uint8)]), [100] * 3),
    ],
)
def test_gray_alpha_and_16_bit_become_rgb(pixels, expected):
    assert to_rgb8(pixels)[0, 0].tolist() == expected


def test_pixels_equal_openslide(tmp_path):
    openslide = pytest.importorskip("openslide", reason="OpenSlide is not installed")
    path = write_tiff(
        tmp_path / "s.svs", blob_image(2000, 1500), compression="jpeg", compressionargs={"level": 95}, levels=(1, 4)
    )
    other = openslide.OpenSlide(str(path))
    with open_slide(path) as slide:
        assert [(l.width, l.height) for l in slide.levels] == list(other.level_dimensions)
        for level, x, y in ((0, 300, 500), (1, 60, 100)):
            d = round(slide.levels[level].downsample)
            theirs = np.asarray(other.read_region((x * d, y * d), level, (200, 150)).convert("RGB")).astype(int)
            assert np.abs(slide.read(level, x, y, 200, 150) - theirs).max() <= 3  # two JPEG decoders


@needs_shared
def test_openslide_formats_go_through_openslide(tmp_path, lrmil):
    pytest.importorskip("openslide", reason="OpenSlide is not installed")
    said = lrmil("info", SHARED / "data/wsi/bad/dicom_wsi_not_tiff.dcm", "--slide-mpp", "1.0", "--json")
    assert said.code == 0 and said.records[0]["reader"] == "openslide"


def test_overview_is_the_area_mean_and_keeps_memory_small(tmp_path):
    image = blob_image(1603, 1211)
    path = write_tiff(tmp_path / "s.svs", image, levels=(1,))
    with open_slide(path) as slide:
        small, sx, sy = overview(slide, 8.0)
    assert (sx, sy) == (16, 16) and small.shape == (76, 101, 3)
    block = image[16 * 20 : 16 * 21, 16 * 30 : 16 * 31].reshape(-1, 3).mean(0)
    assert np.abs(small[20, 30] - block).max() <= 1
    last = (
        image[16 * 75 :, 16 * 100 :].reshape(-1, 3).mean(0)
    )  # the corner block is 3 x 11 px, the rest is no part of it
    assert np.abs(small[-1, -1].astype(int) - last).max() <= 8


def test_a_mask_that_would_be_too_large_is_made_at_half_the_resolution(slide, monkeypatch):
    from lrmil_cli.slides import tiles
    from lrmil_cli.slides.tissue import TissueSettings

    with open_slide(slide) as opened:
        full = tiles.find_tissue(opened, TissueSettings())
        monkeypatch.setattr(tiles, "MAX_MASK_PIXELS", full.mask.size // 2)
        half = tiles.find_tissue(opened, TissueSettings())
    assert (half.scale_x, half.scale_y) == (2 * full.scale_x, 2 * full.scale_y)
    assert half.mask.mean() == pytest.approx(full.mask.mean(), rel=0.06)


def test_features_are_laid_out_as_trident_does(chain):
    with h5py.File(next((chain.teacher / "features").glob("*.h5"))) as h5:
        n = len(h5["features"])
        assert h5["features"].shape == (n, 128) and h5["coords"].shape == (n, 2)
        at = dict(h5["coords"].attrs)
        assert (
            at["patch_size"] == 128
            and at["patch_size_level0"] == 128
            and at["target_magnification"] == 20
            and at["overlap"] == 0
        )
        assert json.loads(h5.attrs["lrmil"])["kind"] == "features"


def test_tables_are_read_by_pandas_and_parquet_readers(chain, tmp_path, lrmil):
    rows = pd.read_csv(chain.tiles_lr / "s00.tiles.csv", comment="#")
    assert list(rows) == ["x", "y", "width", "height", "col", "row", "tissue"]
    slide = chain.manifest.parent / "slides" / "s00.svs"
    assert lrmil("tile", slide, "--mpp", "2.0", "--tile-px", "128", "-o", tmp_path / "t.parquet").code == 0
    assert pd.read_parquet(tmp_path / "t.parquet").equals(rows)


def test_model_opens_with_plain_safetensors(chain):
    from safetensors import safe_open

    with safe_open(chain.model, "pt") as f:
        assert json.loads(f.metadata()["lrmil"])["kind"] == "model"
        assert {k.split(".")[0] for k in f.keys()} == {"encoder0", "head0", "fixture"}


@needs_shared
def test_a_real_pretrained_vit_loads_strictly():
    import torch

    from lrmil_cli.encoders.spec import load_encoder

    weights = SHARED / "data/encoders/vit_small_patch14_dinov2.fp16.safetensors"
    e = load_encoder(f"vit_small_patch14_dinov2@{weights}")
    assert (e.info.image_size, e.grid, e.embed_dim, e.num_prefix) == (224, 16, 384, 1)
    import safetensors.torch
    import timm

    plain = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224).eval()
    plain.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(weights).items()})
    x = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        theirs = plain(((x / 255 - mean) / std).permute(0, 3, 1, 2))
        torch.testing.assert_close(e(x)["final"], theirs, atol=1e-4, rtol=1e-4)


@needs_shared
def test_the_small_aperio_slide_runs_from_tile_to_geojson(chain, tmp_path, lrmil):
    from tests.unit.qupath.test_geojson import check_contract

    slide = SHARED / "data/wsi/CMU-1-Small-Region.svs"
    for mpp, name in (("2.0", "lr"), ("0.5", "hr")):
        assert (
            lrmil("tile", slide, "--mpp", mpp, "--tile-px", "128", "-o", tmp_path / f"{name}.csv", "--thumbnail").code
            == 0
        )
    assert lrmil("match", tmp_path / "lr.csv", tmp_path / "hr.csv", "-o", tmp_path / "pairs.csv").code == 0
    assert lrmil("predict", slide, "-m", chain.model, "-o", tmp_path / "p").code == 0
    assert (
        lrmil("export-geojson", tmp_path / "p" / "CMU-1-Small-Region.attention.csv", "-o", tmp_path / "x.geojson").code
        == 0
    )
    check_contract((tmp_path / "x.geojson").read_text(), 2220, 2967)
