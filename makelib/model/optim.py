"""The optimiser and the schedule of its learning rate."""

from __future__ import annotations

import math

import torch

from makelib.model.make import MakeModel
from makelib.settings import Settings


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate: linear warm-up over the share `warmup` of all steps, then a cosine to a hundredth."""
    first = max(1, round(warmup * steps))
    if step < first:
        return (step + 1) / first
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))


def make_optimizer(model: MakeModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW; each group carries its own `peak` rate. A backbone that came with weights would lose them at the rate of
    what starts from nothing."""
    training, came_with_weights = settings.training, set()
    if settings.model.text_backbone:
        encoders = [model.query_encoder, *([model.title_encoder] if model.sees_title else [])]
        came_with_weights |= {p for encoder in encoders for p in encoder.backbone.parameters()}
    if settings.model.image_pretrained and model.sees_image:
        came_with_weights |= set(model.image_encoder.backbone.parameters())
    groups: dict[tuple[float, float], list] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        peak = training.backbone_rate if parameter in came_with_weights else training.learning_rate
        decay = training.weight_decay if parameter.ndim >= 2 else 0.0  # not of biases, norms and the logit scale
        groups.setdefault((peak, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": held, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), held in groups.items()]
    )
