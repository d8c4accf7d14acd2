"""What stage 1 trains: the LR encoder, a copy of the teacher or a smaller student with its projections (distill/README
4.7)."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from lrmil_cli.device import autocast
from lrmil_cli.distill.regions import pooling_matrix, region_means
from lrmil_cli.distill.settings import Stage1Settings
from lrmil_cli.encoders.vit import Encoder


def paired_blocks(layers: tuple[int, ...], depth: int, student_depth: int) -> tuple[int, ...]:
    """The student's block for each of the teacher's: ``round((l + 1) L_s / L) - 1``, halves up, the first at least.

    Of teachers more than twice as deep, the first blocks may share one of the student's.
    """
    return tuple(max(0, (2 * (l + 1) * student_depth + depth) // (2 * depth) - 1) for l in layers)


class Learner(nn.Module):
    """An encoder on its way, seen as its teacher sees: blocks by the teacher's numbers, widths of the teacher.

    Attributes:
        encoder: trained and kept. projections: a Linear(D_s -> D) for each pair of blocks, ``final_projection`` one for
            the embedding; trained along and thrown away. Of a copy they do nothing.
        layers, blocks: the teacher's, and the encoder's that learn from them.
    """

    pooling: Tensor

    def __init__(self, encoder: Encoder, layers: tuple[int, ...], blocks: tuple[int, ...], ratio: int):
        super().__init__()
        self.encoder, self.layers, self.blocks = encoder, layers, blocks
        self.projections = nn.ModuleList(nn.Identity() for _ in layers)
        self.final_projection: nn.Module = nn.Identity()
        self.register_buffer("pooling", pooling_matrix(encoder.grid, ratio), persistent=False)

    def forward(self, tiles: Tensor, need_final: bool) -> tuple[dict[int, Tensor], Tensor | None]:
        """Tiles uint8 [B, P, P, 3] -> {teacher's block: [B, K, D]} under each HR tile (eq. 1), final [B, D_e].

        Tokens are projected after they are averaged, which is the same, because projections are affine and the weights
        of a cell sum to 1.
        """
        with autocast(tiles.device):
            out = self.encoder(tiles, self.blocks, need_final=need_final)
        means = {
            layer: project(region_means(out["tokens"][block], self.pooling))
            for layer, block, project in zip(self.layers, self.blocks, self.projections)
        }
        return means, self.final_projection(out["final"].float()) if need_final else None

    def projection_weights(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the encoder; empty of a copy."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}


def make_learner(teacher: Encoder, student: Encoder | None, settings: Stage1Settings, ratio: int) -> Learner:
    """What learns from ``teacher``: a copy of it, or of ``student``, with projections drawn at random."""
    if student is None:
        return Learner(_trainable(teacher, settings, copied=True), settings.layers, settings.layers, ratio)
    blocks = paired_blocks(settings.layers, teacher.depth, student.depth)
    learner = Learner(_trainable(student, settings, copied=False), settings.layers, blocks, ratio)
    learner.projections = nn.ModuleList(nn.Linear(student.width, teacher.width) for _ in blocks)
    if settings.final_loss != "none":
        learner.final_projection = nn.Linear(student.embed_dim, teacher.embed_dim)
    return learner.to(next(teacher.parameters()).device)


def _trainable(encoder: Encoder, settings: Stage1Settings, *, copied: bool) -> Encoder:
    """A trainable copy; the first ``freeze_blocks`` blocks stay as they are, and what a copy of the teacher has as the
    teacher published it: poolers and heads."""
    student = copy.deepcopy(encoder)
    model = student.model.requires_grad_(True)
    heads = [getattr(model, name, None) for name in ("head", "attn_pool", "fc_norm", "head_drop")]
    frozen: list[nn.Module] = [m for m in heads if m is not None] if copied else []
    if settings.init == "random":
        kept = {id(m) for head in frozen for m in head.modules()}
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None and id(module) not in kept:
                reset()
    if settings.freeze_blocks:
        first = list(model.get_submodule("blocks").children())[: settings.freeze_blocks]
        frozen += [model.get_submodule("patch_embed"), *first]
        for name in ("cls_token", "pos_embed", "reg_token"):
            own = getattr(model, name, None)
            if isinstance(own, nn.Parameter):
                own.requires_grad_(False)
    for module in frozen:
        module.requires_grad_(False)
    return student.train()
