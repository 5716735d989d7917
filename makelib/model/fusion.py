"""How a product's title and image become one vector: Modal Adaptation, and what it is compared against.

The paper states that Modal Adaptation weighs title and image per product; the form below (a gate, words weighted with the
photograph in sight, a map of its own for what stands alone) is ours. A fusion never sees the query, so products can be encoded once, offline.

B batch, L tokens, P patches, D encoder width, d retrieval width.
`a = (a_t, a_v)` (B, 2) says which of title and image a product has; a missing one has weight exactly 0. `category` int64 (B,)
numbers a product's category; only a control looks at it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.configuration_utils import PretrainedConfig


class Product(NamedTuple):
    """What a fusion returns.

    embedding `p` (B, d), unit length; weights `w` (B, 2) of title and image, sum 1, NaN where a fusion has none;
    parts (B, 2, d) with `p = parts[:, 0] + parts[:, 1]`, so that `q·p` splits exactly into a title and an image part, NaN
    where it does not split.
    """

    embedding: Tensor
    weights: Tensor
    parts: Tensor


class FixedWeights(nn.Module):
    """Constant weights: (1, 0) for `title`, (0, 1) for `image`, (½, ½) for `mean` (CLIP-style).

    `title` and `image` never look at the other modality, also where theirs is missing: that is what they are there to show.
    """

    def __init__(self, title: float) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([title, 1 - title]))

    def forward(self, u_t: Tensor, u_v: Tensor, present: Tensor, category: Tensor) -> Tensor:
        if (self.weights == 0).any():
            return self.weights.expand(len(present), 2)
        return masked_softmax(self.weights.log().expand(len(present), 2), present)


class GlobalWeights(nn.Module):
    """One learned weight for all products: tells "weights *per product*" from "the right average weight"."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, u_t: Tensor, u_v: Tensor, present: Tensor, category: Tensor) -> Tensor:
        return masked_softmax(self.logits.expand(len(present), 2), present)


class CategoryWeights(nn.Module):
    """One learned weight per category: the control that weights *per product* have to beat. Number 0 is "no category"."""

    def __init__(self, categories: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(categories + 1, 2))

    def forward(self, u_t: Tensor, u_v: Tensor, present: Tensor, category: Tensor) -> Tensor:
        return masked_softmax(self.logits[category], present)


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

    def forward(self, u_t: Tensor, u_v: Tensor, present: Tensor, category: Tensor) -> Tensor:
        d = u_t.shape[-1]  # entries of unit vectors are of size 1/√d; brought to size 1, or the gate would learn last
        evidence = torch.cat([u_t * d**0.5, u_v * d**0.5, u_t * u_v * d], dim=-1)
        return masked_softmax(self.mlp(evidence) / self.temperature, present)


class WordWeights(nn.Module):
    """Modal Adaptation, weights per word: which words of a title count, judged with the photograph in sight (ours).

    Each word is scored by a small network on [word; image; word ⊙ image]; the title's summary is the softmax-weighted mean of
    its words. The last layer starts at zero, so it begins as the plain mean. Without an image the words are judged alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        # one layer on the three together, as a map of each: the image's is computed once per product, nothing is joined
        joint = nn.Linear(3 * dim, 64)
        self.word, self.image, self.match = (nn.Linear(dim, 64, bias=first) for first in (True, False, False))
        for each, weight in zip((self.word, self.image, self.match), joint.weight.data.split(dim, dim=1), strict=True):
            each.weight = nn.Parameter(weight.clone())  # starts as one layer of their joint width would
        self.score = nn.Linear(64, 1, bias=False)  # the same for all words of a title would say nothing
        nn.init.zeros_(self.score.weight)

    def forward(self, words: Tensor, place: Tensor, mask: Tensor, u_v: Tensor) -> Tensor:
        """words (U, d), each once; place int64 (n,), which of them stands at each of the n ones of mask (B, L), row by row; u_v (B, d),
        zeros where there is no image -> weights (B, L), 0 at padding."""
        d = u_v.shape[-1]  # entries of unit vectors, brought to size 1
        words, seen, title = F.normalize(words, dim=-1) * d**0.5, u_v * d**0.5, mask.nonzero()[:, 0]
        matched = self.match(F.embedding(place, words) * F.embedding(title, seen))
        hidden = F.embedding(place, self.word(words)) + F.embedding(title, self.image(seen)) + matched
        scores = self.score(F.gelu(hidden)).squeeze(-1).float()
        return mask.new_full(mask.shape, -1e4, dtype=torch.float32).masked_scatter(mask > 0, scores).softmax(dim=-1)


class Alone(nn.Module):
    """Modal Adaptation, where a modality is missing: the other one, alone, is mapped by weights of its own (ours).

    `u + A u`, `A` starting at zero; complete products pass through unchanged.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim)])
        for each in self.maps:
            nn.init.zeros_(each.weight)
            nn.init.zeros_(each.bias)

    def forward(self, streams: Tensor, present: Tensor) -> Tensor:
        """streams (B, 2, d), present (B, 2) -> (B, 2, d)."""
        alone = present * (1 - present.flip(1))  # (B, 2)
        mapped = torch.stack([each(streams[:, m]) for m, each in enumerate(self.maps)], dim=1)
        return streams + alone[..., None] * mapped


class StreamFusion(nn.Module):
    """Two streams, weighted: `p = normalise(w_t u_t + w_v u_v)` with unit-length streams, so that w means what it says.

    `words` int64 (B, L): words of one number have one state wherever they stand (a bag of words), and are looked at once a batch.
    """

    def __init__(
        self, weigh: nn.Module, project_title: nn.Module, words: WordWeights | None, alone: Alone | None
    ) -> None:
        super().__init__()
        self.weigh, self.words, self.alone = weigh, words, alone
        self._project = (project_title,)  # belongs to the model, which uses it for the plain summary too

    def forward(
        self,
        H_t: Tensor,
        title_mask: Tensor,
        H_v: Tensor,
        u_t: Tensor,
        u_v: Tensor,
        present: Tensor,
        category: Tensor,
        words: Tensor | None = None,
    ) -> Product:
        if self.words is not None:
            project, lengths = self._project[0], title_mask.long().sum(dim=1)
            at = title_mask.flatten().nonzero()[:, 0]  # (n,), where words stand
            kinds, place = (at if words is None else words.flatten()[at]).unique(return_inverse=True)
            states = H_t.flatten(0, 1)[at.new_empty(len(kinds)).scatter_(0, place, at)]  # (U, D)
            # the projection without its dropout
            weights = self.words(project[-1](states), place, title_mask, u_v * present[:, 1:])[title_mask > 0]
            bags = {"offsets": lengths.cumsum(0) - lengths, "per_sample_weights": weights.to(states.dtype)}
            u_t = F.normalize(project(F.embedding_bag(place, states, mode="sum", **bags)), dim=-1)
        weights = self.weigh(u_t, u_v, present, category)  # (B, 2)
        streams = torch.stack([u_t, u_v], dim=1)  # (B, 2, d)
        if self.alone is not None:
            streams = self.alone(streams, present)
        weighted = weights[..., None] * streams
        length = weighted.sum(dim=1).norm(dim=-1).clamp(min=1e-6)
        parts = weighted / length[:, None, None]
        return Product(parts.sum(dim=1), weights, parts)


class JointFusion(nn.Module):
    """A transformer over `[CLS; title; patches]`; it has no weights and its score does not split.

    With `residual` its output is added to the mean of the streams and starts at zero (`joint`, ALBEF-style): trained from a cold
    start it loses to titles alone, and would be a straw man. Without, its output is all there is from the first step
    (`single_stream`, as FashionBERT, Gao et al. 2020, and CommerceMM's multimodal encoder, Yu et al. 2022); it is as
    wide as the encoders, for nothing goes around it, where 64 entries are enough for what is added to the mean.
    """

    def __init__(self, width: int, dim: int, heads: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        inner = 64 if residual else width
        self.cls = nn.Parameter(torch.randn(1, 1, inner) * 0.02)
        self.modality = nn.Parameter(torch.randn(2, inner) * 0.02)
        self.enter_title, self.enter_image = nn.Linear(width, inner), nn.Linear(width, inner)
        layer = nn.TransformerEncoderLayer(
            inner, heads, 4 * inner, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(inner), enable_nested_tensor=False)
        self.project = nn.Linear(inner, dim)
        if residual:
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(
        self, H_t: Tensor, title_mask: Tensor, H_v: Tensor, u_t: Tensor, u_v: Tensor, present: Tensor, *_: Tensor | None
    ) -> Product:
        B, P = len(H_t), H_v.shape[1]
        words, patches = self.enter_title(H_t) + self.modality[0], self.enter_image(H_v) + self.modality[1]
        states = torch.cat([self.cls.expand(B, 1, -1), words, patches], dim=1)
        mask = torch.cat(
            [present.new_ones(B, 1), title_mask.to(present.dtype) * present[:, :1], present[:, 1:].expand(B, P)], dim=1
        )  # (B, 1 + L + P)
        embedding = self.project(self.encoder(states, src_key_padding_mask=mask == 0)[:, 0])
        if self.residual:
            mean = masked_softmax(torch.zeros_like(present), present).to(u_t.dtype)
            embedding = (mean[..., None] * torch.stack([u_t, u_v], dim=1)).sum(dim=1) + embedding
        embedding = F.normalize(embedding, dim=-1)
        unknown = embedding.new_full((B, 2, embedding.shape[-1]), torch.nan)
        return Product(embedding, unknown[..., 0], unknown)


def masked_softmax(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over (B, 2) in float32 in which an absent modality has weight exactly 0 and no gradient.

    Where both are absent the weights are those of both present: such a product cannot be told from another anyway.
    """
    present = torch.where(present.any(dim=-1, keepdim=True), present, torch.ones_like(present)).bool()
    logits = logits.float().clamp(min=-1e4).masked_fill(~present, -torch.finfo(torch.float32).max)
    return torch.where(present, logits.softmax(dim=-1), 0.0)


def make_fusion(config: PretrainedConfig, project_title: nn.Module) -> nn.Module:
    """The fusion that a `makelib.model.make.MakeConfig` names, everything else equal."""
    kind, dim = config.fusion, config.dim
    if kind in ("joint", "single_stream"):
        return JointFusion(config.width, dim, config.heads, config.dropout, residual=kind == "joint")
    weigh = {
        "title": lambda: FixedWeights(1.0),
        "image": lambda: FixedWeights(0.0),
        "mean": lambda: FixedWeights(0.5),
        "global": GlobalWeights,
        "category": lambda: CategoryWeights(config.categories),
        "gate": lambda: Gate(dim, config.gate_temperature),
        "adaptive": lambda: Gate(dim, config.gate_temperature),
    }[kind]()
    words, alone = (WordWeights(dim), Alone(dim)) if kind == "adaptive" else (None, None)
    return StreamFusion(weigh, project_title, words, alone)
