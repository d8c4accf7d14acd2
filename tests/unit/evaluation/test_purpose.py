"""What a model was trained on, in a line; models of earlier versions say that it is not recorded."""

from lrmil_cli.evaluation.purpose import means_nothing, purpose, purpose_text
from lrmil_cli.files.manifest import read_manifest
from lrmil_cli.training.cohort_record import data_of


def test_a_model_says_what_its_slides_were(tmp_path):
    (tmp_path / "slides.csv").write_text(
        "slide,label,Organ,staining,split\na.svs,x,colon,H&E,train\nb.svs,y,colon,,val\nc.svs,y,rectum,H&E,test\n"
    )
    manifest = read_manifest(tmp_path / "slides.csv")
    slides = [{"mpp": m, "vendor": v} for m, v in ((0.25, "aperio"), (0.5, "aperio"), (0.25, "hamamatsu"))]
    import pandas as pd

    folds = pd.DataFrame({"slide_id": ["a", "b", "c"], "fold_1": ["train", "val", "test"]})
    header = {"data": data_of(manifest, folds, [{"slide": s} for s in slides]), "encoders": [{"base": "uni"}]}
    known = purpose(header)
    assert purpose_text(known) == (
        "trained on 3 slides (1 x, 2 y); organ colon, rectum; stain H&E; 0.25 to 0.5 um/px; scanners aperio, hamamatsu"
    )
    assert not means_nothing(known, {}) and "staining as stain" in manifest.understood()


def test_painted_slides_are_said_plainly_and_what_is_not_recorded_too():
    old = purpose({"slides": ["a", "b"], "encoders": [{"base": "uni"}]})
    assert purpose_text(old) == (
        "trained on 2 slides; organ not recorded; stain not recorded; um/px not recorded; scanners not recorded"
    )
    assert purpose_text(purpose({})).startswith("training slides not recorded")
    encoders = [{"base": "demo-vit"}]
    demo = purpose({"data": {"slides": 2, "painted": 2}, "encoders": encoders})
    assert purpose_text(demo) == "trained on 2 painted slides; it knows no tissue"
    assert "`lrmil demo` painted" in means_nothing(demo, {"vendor": "aperio"})
    assert not means_nothing(demo, {"painted": True}) and not means_nothing(old, {})
    # Slides that were not painted, or of which nothing is recorded, are not called so for the sake of the encoder.
    for data in ({"data": {"slides": 2, "painted": 0}}, {"slides": ["a", "b"]}):
        real = purpose({**data, "encoders": encoders})
        assert purpose_text(real).startswith("trained on 2 slides;") and "demo-vit, knows painted" in purpose_text(real)
        assert "encoder, demo-vit" in means_nothing(real, {"vendor": "aperio"})
