"""Gradient caching: a step whose memory does not grow with its batch (Gao et al. 2021, arXiv 2101.06983).

Every row's features are computed piece by piece, without a graph; the objectives, block by block, give the gradient of each feature;
then each piece is computed once more, with a graph, to hand its gradient on to the weights. Nothing else of size B² is there than the
masks, a bit a pair. Two passes through the encoders cost about a third more time than one and its gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from makelib.model.losses import Block, full, objectives, total
from makelib.model.make import OTHERS, MakeModel
from makelib.ranks import add_up, add_up_gradients, gather, place, share
from makelib.runtime import UserError
from makelib.settings import Objectives

if TYPE_CHECKING:
    from makelib.model.batches import Batch
    from makelib.model.training import Run

#: pairs of a query and a product whose losses are computed at once
PAIRS = 2**18


def check(model: MakeModel) -> None:
    """Raises `UserError` where a row's features depend on which others are with it in a piece: a batch norm that learns."""
    learns = model.sees_image and model.image_encoder.learns
    if learns and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.image_encoder.modules()):
        raise UserError(
            f"training.chunk would cut the batch norms of {model.config.image_backbone} into pieces. Set training.chunk to 0, or "
            "model.image_frozen, or model.image_backbone to one without batch norm (such as a ConvNeXt or a ViT)."
        )


def backward(
    run: Run, batch: Batch, weights: Objectives, done: float, dropout: np.random.SeedSequence
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What `makelib.model.training.whole` does, `training.chunk` rows at a time. The gradient is the same but for what dropout
    hides, which is drawn for each piece and drawn again when it is computed again."""
    model, accelerator, chunk = run.model, run.accelerator, run.settings.training.chunk
    (inputs, pairs), (rank, world) = batch, place()
    b = len(inputs["present"])
    pieces, seeds = [slice(at, min(at + chunk, b)) for at in range(0, b, chunk)], dropout.generate_state(-(-b // chunk))

    def features(turn: int) -> dict[str, Tensor]:
        torch.manual_seed(int(seeds[turn]))
        with accelerator.autocast():
            found = model.features(_rows_of(inputs, pieces[turn]), weights)
        return {name: full(tensor) for name, tensor in found.items()}

    with torch.no_grad():
        parts = [features(turn) for turn in range(len(pieces))]
        scale = parts[0]["scale"].clone().requires_grad_()
        cached = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "scale"}
        cached = {name: tensor if name == "word_loss" else gather(tensor) for name, tensor in cached.items()}
        pairs = pairs | {name: gather(pairs[name]) for name in ("positives", "negatives", "shown")}
        others = {name: gather(inputs[name]) for name in OTHERS if name in inputs}
    del parts
    leaves = {name: tensor.requires_grad_() for name, tensor in cached.items()}
    B, first, terms, masked = len(pairs["present"]), rank * b, defaultdict(float), 0
    count, shown = torch.tensor(B, device=accelerator.device), pairs["shown"].sum()
    for rows in _blocks(B):
        masks = {name: unpacked(pairs[name][rows], B) for name in ("positives", "negatives")}
        behind = [unpacked(pairs[name], B, rows).T for name in ("positives", "negatives")]
        here, own = leaves | {"scale": scale}, slice(rows.start - first, rows.stop - first)
        if "H_q" in leaves:
            mine = {name: leaves[name][rows] for name in ("q", "u_t", "H_q", "H_t", "H_v")} | {"scale": scale}
            part = {name: inputs[name][own] for name in ("title_mask", "query_mask", "present", "draws")}
            with accelerator.autocast():
                here |= model.matches(mine, leaves | others, part, masks["negatives"], rows.start, weights)
        block = Block(rows, behind[0], behind[1], count, count, shown)
        options = {"fusion": model.config.fusion, "progress": done, "block": block}
        found = objectives(here, pairs | masks, weights, run.settings.keywords, **options)
        accelerator.backward(total(found, weights))
        for name, term in found.items():
            terms[name] += world * term.detach()  # as the curves have it, the mean over processes
        masked += B * len(masks["negatives"]) - masks["negatives"].sum()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    gradients = {
        name: tensor if name == "word_loss" else add_up(tensor)[first : first + b] for name, tensor in gradients.items()
    }
    for turn, piece in enumerate(pieces):
        found, at = features(turn), {"word_loss": slice(turn, turn + 1)}
        handed = [(found[name], tensor[at.get(name, piece)]) for name, tensor in gradients.items()]
        handed += [(found["scale"], scale.grad)] * (turn == 0)
        handed = [pair for pair in handed if pair[0].requires_grad]
        torch.autograd.backward(*map(list, zip(*handed, strict=True)))
    add_up_gradients(model)
    return dict(terms), {"w": cached["w"].detach(), "scale": scale.detach()}, masked * world


def _blocks(B: int) -> Iterator[slice]:
    """Rows of this process, in blocks whose losses are computed at once."""
    mine, size = share(B), max(1, PAIRS // B)
    return (slice(at, min(at + size, mine.stop)) for at in range(mine.start, mine.stop, size))


def _rows_of(inputs: dict[str, Tensor], piece: slice) -> dict[str, Tensor]:
    """The inputs of some rows, with their further photographs."""
    part = {}
    for prefix in ("", "negative_"):
        if f"{prefix}owner" in inputs:
            pixels, owner = inputs[f"{prefix}pixels"], inputs[f"{prefix}owner"]
            own = (owner >= piece.start) & (owner < piece.stop)
            further = pixels[len(pixels) - len(owner) :][own]
            part |= {f"{prefix}pixels": torch.cat([pixels[piece], further]), f"{prefix}owner": owner[own] - piece.start}
    return {name: tensor[piece] for name, tensor in inputs.items() if name not in part} | part


def unpacked(bits: Tensor, B: int, columns: slice = slice(None)) -> Tensor:
    """Some columns of a mask bool (b, B) whose rows are bits, uint8 (b, ⌈B / 8⌉)."""
    first, last, _ = columns.indices(B)
    bytes_ = bits[:, first // 8 : -(-last // 8), None]
    places = torch.arange(7, -1, -1, device=bits.device, dtype=torch.uint8)
    return ((bytes_ >> places) & 1).bool().flatten(1)[:, first % 8 : first % 8 + last - first]
