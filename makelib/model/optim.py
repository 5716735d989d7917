"""The optimiser and the schedule of its learning rate."""

from __future__ import annotations

import math

import torch

from makelib.model.make import MakeModel
from makelib.settings import Settings


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    peak, warmup = settings.training.learning_rate, max(1, round(settings.training.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def make_optimizer(model: MakeModel, settings: Settings) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]  # biases, norms and the logit scale: no weight decay
    groups = [
        {"params": decayed, "weight_decay": settings.training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.training.learning_rate)
