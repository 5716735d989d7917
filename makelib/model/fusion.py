"""How a product's title and image become one vector: Modal Adaptation, and what it is compared against.

The paper states that Modal Adaptation weighs title and image per product; the form below (a gate, then cross attention
in proportion to the gate) is ours. A fusion never sees the query, so products can be encoded once, offline.

B batch, L tokens, P patches, D encoder width, d retrieval width.
`a = (a_t, a_v)` (B, 2) says which of title and image a product has; a missing one has weight exactly 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makelib.model.encoders import mean_pool


class Product(NamedTuple):
    """What a fusion returns.

    embedding `p` (B, d), unit length; weights `w` (B, 2) of title and image, sum 1, NaN where a fusion has none;
    parts (B, 2, d) with `p = parts[:, 0] + parts[:, 1]`, so that `q·p` splits exactly into a title and an image part, NaN
    where it does not split; tokens (B, L, D): title states as the fusion leaves them, for masked-token prediction.
    """

    embedding: Tensor
    weights: Tensor
    parts: Tensor
    tokens: Tensor


class FixedWeights(nn.Module):
    """Constant weights: (1, 0) for `title`, (0, 1) for `image`, (½, ½) for `mean` (CLIP-style).

    `title` and `image` never look at the other modality, also where theirs is missing: that is what they are there to show.
    """

    def __init__(self, title: float) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([title, 1 - title]))

    def forward(self, u_t: Tensor, u_v: Tensor, present: Tensor) -> Tensor:
        if (self.weights == 0).any():
            return self.weights.expand(len(present), 2)
        return masked_softmax(self.weights.log().expand(len(present), 2), present)


class GlobalWeights(nn.Module):
    """One learned weight for all products: tells "weights *per product*" from "the right average weight"."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, u_t: Tensor, u_v: Tensor, present: Tensor) -> Tensor:
        return masked_softmax(self.logits.expand(len(present), 2), present)


class Gate(nn.Module):
    """Modal Adaptation, weights per product: `w = softmax(MLP([u_t; u_v; u_t ⊙ u_v]) / τ + log a)` (ours).

    The last layer starts at zero, so every product starts at (½, ½) and training begins as `mean`.
    """

    def __init__(self, dim: int, temperature: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, 2))
        nn.init.zeros_(self.mlp[-1].weight)
        nn.init.zeros_(self.mlp[-1].bias)
        self.temperature = temperature

    def forward(self, u_t: Tensor, u_v: Tensor, present: Tensor) -> Tensor:
        d = u_t.shape[-1]  # entries of unit vectors are of size 1/√d; brought to size 1, or the gate would learn last
        evidence = torch.cat([u_t * d**0.5, u_v * d**0.5, u_t * u_v * d], dim=-1)
        return masked_softmax(self.mlp(evidence) / self.temperature, present)


class CrossAttentionBlock(nn.Module):
    """One stream takes the other in, in proportion to the other's weight (ours).

    The residual scale starts at zero: the block begins as the identity and departs from it only where that helps.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor, other: Tensor, other_mask: Tensor | None, weight: Tensor) -> Tensor:
        """states (B, L, D), other (B, M, D), other_mask (B, M) or None, weight (B,) of the other modality -> (B, L, D)."""
        padding = None if other_mask is None else other_mask == 0
        taken, _ = self.attention(self.norm(states), other, other, key_padding_mask=padding, need_weights=False)
        return states + weight[:, None, None] * self.scale * (taken + self.mlp(taken))


class StreamFusion(nn.Module):
    """Two streams, weighted: `p = normalise(w_t c_t + w_v c_v)` with unit-length streams, so that w means what it says.

    With `cross=None` the streams are the unimodal summaries; with cross attention they have seen each other.
    """

    def __init__(
        self, weigh: nn.Module, project_title: nn.Module, project_image: nn.Module, cross: nn.ModuleList | None
    ) -> None:
        super().__init__()
        self.weigh, self.cross = weigh, cross
        # the projections belong to the model, which uses them for the unimodal summaries too
        self._project = (project_title, project_image)

    def forward(
        self, H_t: Tensor, title_mask: Tensor, H_v: Tensor, u_t: Tensor, u_v: Tensor, present: Tensor
    ) -> Product:
        weights = self.weigh(u_t, u_v, present)  # (B, 2)
        if self.cross is None:
            streams = torch.stack([u_t, u_v], dim=1)  # (B, 2, d)
        else:
            C_t = self.cross[0](H_t, H_v, None, weights[:, 1])  # (B, L, D)
            C_v = self.cross[1](H_v, H_t, title_mask, weights[:, 0])  # (B, P, D)
            c_t = F.normalize(self._project[0](mean_pool(C_t, title_mask)), dim=-1)
            c_v = F.normalize(self._project[1](mean_pool(C_v)), dim=-1)
            streams, H_t = torch.stack([c_t, c_v], dim=1), C_t
        weighted = weights[..., None] * streams  # (B, 2, d)
        length = weighted.sum(dim=1).norm(dim=-1).clamp(min=1e-6)
        parts = weighted / length[:, None, None]
        return Product(parts.sum(dim=1), weights, parts, H_t)


class JointFusion(nn.Module):
    """A transformer over `[CLS; title; patches]`, ALBEF/FashionBERT-style; it has no weights and its score does not split."""

    def __init__(self, width: int, dim: int, heads: int, dropout: float, layers: int = 1) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.modality = nn.Parameter(torch.randn(2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.project = nn.Linear(width, dim)

    def forward(
        self, H_t: Tensor, title_mask: Tensor, H_v: Tensor, u_t: Tensor, u_v: Tensor, present: Tensor
    ) -> Product:
        B, L, P = len(H_t), H_t.shape[1], H_v.shape[1]
        states = torch.cat([self.cls.expand(B, 1, -1), H_t + self.modality[0], H_v + self.modality[1]], dim=1)
        mask = torch.cat(
            [present.new_ones(B, 1), title_mask.to(present.dtype) * present[:, :1], present[:, 1:].expand(B, P)], dim=1
        )  # (B, 1 + L + P)
        states = self.encoder(states, src_key_padding_mask=mask == 0)
        embedding = F.normalize(self.project(states[:, 0]), dim=-1)
        unknown = embedding.new_full((B, 2, embedding.shape[-1]), torch.nan)
        return Product(embedding, unknown[..., 0], unknown, states[:, 1 : 1 + L])


def masked_softmax(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over (B, 2) in float32 in which an absent modality has weight exactly 0 and no gradient.

    Where both are absent the weights are those of both present: such a product cannot be told from another anyway.
    """
    present = torch.where(present.any(dim=-1, keepdim=True), present, torch.ones_like(present)).bool()
    logits = logits.float().clamp(min=-1e4).masked_fill(~present, -torch.finfo(torch.float32).max)
    return torch.where(present, logits.softmax(dim=-1), 0.0)


def make_fusion(
    kind: str,
    *,
    width: int,
    dim: int,
    heads: int,
    dropout: float,
    gate_temperature: float,
    project_title: nn.Module,
    project_image: nn.Module,
) -> nn.Module:
    """The fusion named `kind` (one of `makelib.settings.FUSIONS`), everything else equal."""
    if kind == "joint":
        return JointFusion(width, dim, heads, dropout)
    weigh = {
        "title": lambda: FixedWeights(1.0),
        "image": lambda: FixedWeights(0.0),
        "mean": lambda: FixedWeights(0.5),
        "global": GlobalWeights,
        "gate": lambda: Gate(dim, gate_temperature),
        "adaptive": lambda: Gate(dim, gate_temperature),
    }[kind]()
    cross = None
    if kind == "adaptive":
        cross = nn.ModuleList([CrossAttentionBlock(width, heads, dropout), CrossAttentionBlock(width, heads, dropout)])
    return StreamFusion(weigh, project_title, project_image, cross)
