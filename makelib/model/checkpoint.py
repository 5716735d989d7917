"""Checkpoints: what a run that was killed needs to go on to the same weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from makelib.model.make import MakeModel
from makelib.ranks import decided, place
from makelib.runtime import UserError, atomic_folder


@dataclass
class TrainingState:
    """What a checkpoint holds beside the tensors."""

    stage: str = "pretrain"
    step: int = 0
    curves: list[dict] = None
    best: float = -math.inf
    stale: int = 0


def copied_weights(model: MakeModel) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def save_checkpoint(
    folder: Path,
    model: MakeModel,
    optimizer: Optimizer,
    scaler: GradScaler | None,
    state: TrainingState,
    best: dict[str, Tensor],
    identity: str,
) -> None:
    """Weights, optimiser moments, the loss scale of fp16 (`scaler`, else None) and the state, as safetensors and JSON: no pickle
    is ever read."""
    moments = {
        f"{index}.{name}": torch.as_tensor(value).cpu().contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    with atomic_folder(folder) as draft:
        safetensors.torch.save_file(copied_weights(model), draft / "model.safetensors")
        safetensors.torch.save_file(best, draft / "best.safetensors")
        safetensors.torch.save_file(moments, draft / "optimizer.safetensors")
        scale = scaler.state_dict() if scaler else None
        (draft / "state.json").write_text(json.dumps({**vars(state), "identity": identity, "scaler": scale}))


def load_checkpoint(
    folder: Path, model: MakeModel, optimizer: Optimizer, scaler: GradScaler | None, identity: str
) -> tuple[TrainingState, dict[str, Tensor]]:
    """What `save_checkpoint` wrote, for all processes; the main one reads, for another machine may not see the folder.

    Raises `UserError` where it is a checkpoint of something else.
    """
    held = decided(json.loads((folder / "state.json").read_text()) if place()[0] == 0 else None)
    if held.pop("identity") != identity:
        raise UserError(
            f"{folder} is a checkpoint of other settings, seed or catalogue. Use another folder, or delete it to start anew."
        )
    if (scale := held.pop("scaler")) and scaler:
        scaler.load_state_dict(scale)
    names = ("model", "best", "optimizer")
    weights, best, moments = decided(
        [safetensors.torch.load_file(folder / f"{name}.safetensors") for name in names] if place()[0] == 0 else None
    )
    model.load_state_dict(weights)
    tree = optimizer.state_dict()
    tree["state"] = {}
    for key, value in moments.items():
        index, name = key.split(".")
        tree["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(tree)
    return TrainingState(**held), best
