"""Stage 1 with a student that is no copy of its teacher (distill/README 4.7)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrmil_cli.distill.encoder_training import distill
from lrmil_cli.distill.learner import make_learner, paired_blocks
from lrmil_cli.distill.patch_loss import batch_loss
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.distill.small_student import load_student, origin
from lrmil_cli.encoders.aliases import licence_warning
from lrmil_cli.encoders.build import create_vit
from lrmil_cli.encoders.spec import load_encoder
from lrmil_cli.encoders.vit import Encoder, EncoderInfo
from lrmil_cli.errors import InputError, UsageError


def vit(architecture="vit_tiny_patch16_224", side=64, width=24, depth=4, embedding="cls", **args):
    torch.manual_seed(width + depth)
    args = {"embed_dim": width, "depth": depth, "num_heads": 2, **args}
    info = EncoderInfo(f"w{width}", architecture, side, (0.5,) * 3, (0.5,) * 3, embedding, args, license="Apache-2.0")
    return Encoder(create_vit(architecture, side, args).eval(), info)


TEACHER = vit(width=32, depth=8)
#: Another patch side, register tokens, no class token: each with a grid of its own.
FAMILIES = {
    "same": dict(),
    "patch8": dict(architecture="vit_small_patch8_224"),
    "registers": dict(architecture="vit_small_patch14_reg4_dinov2", side=112),
    "no class token": dict(embedding="mean", class_token=False, global_pool="avg"),
}


def tiles(n=2, side=64):
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(
    ("layers", "depth", "own", "blocks"),
    [
        ((0, 1, 10), 12, 12, (0, 1, 10)),
        ((0, 1, 22), 24, 12, (0, 0, 11)),
        ((0, 1, 38), 40, 12, (0, 0, 11)),
        ((0, 1, 10), 12, 4, (0, 0, 3)),
        ((1, 3, 5), 6, 3, (0, 1, 2)),
        ((0, 1), 2, 6, (2, 5)),
    ],
)
def test_blocks_are_paired_by_how_deep_they_lie(layers, depth, own, blocks):
    assert paired_blocks(layers, depth, own) == blocks


@given(st.integers(1, 60), st.integers(1, 60))
def test_every_block_has_a_partner_in_order_and_the_last_the_last(depth, own):
    blocks = paired_blocks(tuple(range(depth)), depth, own)
    assert all(0 <= b < own for b in blocks) and list(blocks) == sorted(blocks) and blocks[-1] == own - 1
    assert depth != own or blocks == tuple(range(depth))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_by_a_slow_loop(family):
    """Tokens averaged cell by cell, projected, compared number by number; missing children hold nonsense."""
    settings = Stage1Settings((0, 1, 6), final_loss="uniform", lambda_final=0.5)
    learner = make_learner(TEACHER, vit(**FAMILIES[family]), settings, 4)
    x, k = tiles(), 16
    targets, final = torch.randn(2, k, 3, TEACHER.width), torch.randn(2, k, TEACHER.embed_dim)
    mask = torch.rand(2, k, generator=torch.Generator().manual_seed(0)) > 0.4
    targets[~mask], final[~mask] = torch.nan, torch.nan
    with torch.no_grad():
        loss, parts = batch_loss(learner, x, targets, mask, settings, final)
        out = learner.encoder(x, learner.blocks)
        embedding = learner.final_projection(out["final"]).double().numpy()
    assert learner.blocks == (0, 0, 3)
    side = learner.encoder.grid // 4
    want = 0.0
    for i, (block, projection) in enumerate(zip(learner.blocks, learner.projections)):
        w, b = (p.detach().double().numpy() for p in (projection.weight, projection.bias))
        tokens = out["tokens"][block].double().numpy()
        of_layer = []
        for n in range(2):
            errors = []
            for cell in range(k):
                if mask[n, cell]:
                    y, c = (side * v for v in divmod(cell, 4))
                    z = w @ tokens[n, y : y + side, c : c + side].mean((0, 1)) + b
                    errors.append(((z - targets[n, cell, i].double().numpy()) ** 2).mean())
            of_layer.append(np.mean(errors))
        assert parts[f"loss_{settings.layers[i]}"].item() == pytest.approx(np.mean(of_layer), rel=1e-4)
        want += np.mean(of_layer) / 3
    each = [
        np.mean([((embedding[n] - final[n, c].double().numpy()) ** 2).mean() for c in range(k) if mask[n, c]])
        for n in range(2)
    ]
    assert loss.item() == pytest.approx(want + 0.5 * np.mean(each), rel=1e-4)


def test_gradients_reach_all_of_the_student_and_each_projection():
    settings = Stage1Settings((0, 1, 6), final_loss="uniform")
    student = vit()
    learner = make_learner(TEACHER, student, settings, 4)
    mask, final = torch.ones(2, 16, dtype=torch.bool), torch.randn(2, 16, TEACHER.embed_dim)
    batch_loss(learner, tiles(), torch.randn(2, 16, 3, TEACHER.width), mask, settings, final)[0].backward()
    still = [n for n, p in learner.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not still and len(list(learner.projections)) == 3  # two of the teacher's blocks share one, not a projection
    assert all(p.grad is None for e in (TEACHER, student) for p in e.parameters())
    assert not [n for n, _ in make_learner(TEACHER, None, settings, 4).named_parameters() if "projection" in n]


def test_a_distilled_student_says_more_of_the_teacher_than_it_did_before():
    """By the best linear map from its cells to the teacher's class tokens, on tiles that none has seen."""
    rng = np.random.default_rng(0)

    def draw(n):  # tiles of 4 x 4 cells, each black and white in a pattern of its own; the teacher sees one cell
        cells = 255 * rng.integers(0, 2, (n, 4, 4, 2, 2, 1)).repeat(3, 5)
        lr = torch.tensor(
            cells.transpose(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, 3).repeat(8, 1).repeat(8, 2), dtype=torch.uint8
        )
        hr = torch.tensor(cells.reshape(-1, 2, 2, 3).repeat(32, 1).repeat(32, 2), dtype=torch.uint8)
        with torch.no_grad():
            out = TEACHER(hr, (6,))
        return lr, out["summary"][6].view(n, 16, 1, -1), out["final"].view(n, 16, -1)

    settings = Stage1Settings((6,), final_loss="uniform", lr=3e-3)
    start = vit()
    learner = make_learner(TEACHER, start, settings, 4)
    optimizer = torch.optim.Adam(learner.parameters(), settings.lr)
    train, test = draw(24), draw(24)
    for _ in range(30):
        loss, _ = batch_loss(learner, train[0], train[1], torch.ones(24, 16, dtype=torch.bool), settings, train[2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def unexplained(encoder):
        """Share of the variance of the targets that a linear map fitted on ``train`` leaves on ``test``."""
        probe = make_learner(encoder, None, Stage1Settings((3,)), 4).eval()
        with torch.no_grad():
            x, z = (probe(t[0], False)[0][3].flatten(0, 1).double() for t in (train, test))
        y, want = (t[1].flatten(0, 2).double() for t in (train, test))
        x, z = (torch.cat([v, torch.ones(len(v), 1, dtype=v.dtype)], 1) for v in (x, z))
        w = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
        return (((z @ w - want) ** 2).sum() / ((want - want.mean(0)) ** 2).sum()).item()

    before, after = unexplained(start), unexplained(learner.encoder.eval())
    assert after < 0.6 * before, (before, after)


def test_an_interrupted_run_with_a_student_goes_on_as_if_it_had_not_been(cohort, tmp_path):
    teacher = load_encoder("demo-vit", tile_px=128, ratio=4)

    def train(cache, epochs):
        settings = Stage1Settings((0, 1), lr=1e-3, epochs=epochs, batch_size=4, warmup=3, final_loss="uniform")
        args = dict(cache=cache, key="k" * 16, device=torch.device("cpu"), student=vit())
        return distill(teacher, cohort.train, cohort.val, settings, **args)

    whole = train(tmp_path / "a", 2)
    train(tmp_path / "b", 1)
    again = train(tmp_path / "b", 2)
    assert again.curves == whole.curves and whole.curves[2]["train_loss"] < whole.curves[1]["train_loss"]
    assert again.encoder.width == 24 and again.encoder.digest() == whole.encoder.digest()


def test_a_student_derives_from_both_and_is_bound_by_both_licences():
    strict = vit(width=32)
    strict.info = replace(strict.info, name="uni", base="hf-hub:MahmoodLab/uni", license="CC-BY-NC-ND-4.0")
    plain = vit()
    for teacher, student, base in ((strict, plain, "hf-hub:MahmoodLab/uni and w24"), (plain, strict, "w24 and hf-hub")):
        info = replace(student.info, **origin(student, teacher))
        assert info.base.startswith(base) and "must not be passed on" in licence_warning(info)
    plain.info = replace(plain.info, random_init=True)
    info = replace(plain.info, **origin(plain, strict))
    assert (info.base, info.license, info.random_init) == (strict.info.base, "CC-BY-NC-ND-4.0", False)
    assert "random weights" in info.note


@pytest.mark.parametrize(
    ("spec", "how", "error", "says"),
    [
        ("vit_tiny_patch16_224", dict(input_size=96, random_init=True), UsageError, "6 x 6 tokens.*--student-input-si"),
        ("vit_tiny_patch16_224", dict(input_size=100, random_init=True), UsageError, "--student-input-size 100 is not"),
        ("vit_small_patch8_224", dict(random_init=True), UsageError, "384 wide, and the HR encoder w192 192; choose"),
        ("resnet18", dict(random_init=True), UsageError, "--student: encoder resnet18: not a plain ViT"),
        ("vit_tiny_patch16_224@{w}", dict(), InputError, "--student: .*do not fit the architecture"),
        ("{w}", dict(random_init=True), UsageError, "--random-init makes no sense with the weights"),
    ],
)
def test_students_that_cannot_be(tmp_path, spec, how, error, says):
    from safetensors.torch import save_file

    save_file(dict(vit().weights()), tmp_path / "w.safetensors")
    own = dict(tile_px=128, ratio=4, input_size=None, random_init=False, seed=0, allow_fractional=False, warn=print)
    with pytest.raises(error, match=says) as e:
        load_student(spec.format(w=tmp_path / "w.safetensors"), vit(width=192, depth=1), **{**own, **how})
    assert "\n" not in str(e.value)


def test_random_weights_of_a_student_are_the_same_again():
    own = dict(tile_px=64, ratio=4, input_size=64, random_init=True, allow_fractional=False, warn=print)
    teacher = vit(width=192, depth=1)
    a, b, c = (load_student("vit_tiny_patch16_224", teacher, seed=s, **own).digest() for s in (0, 0, 1))
    assert a == b != c
