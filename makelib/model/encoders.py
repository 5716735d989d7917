"""The three encoders: query, title and image, each from raw input to *states* of width D. Pooling and projection live here too;
what joins the modalities is in `makelib.model.fusion`.

B batch, L tokens, P patches, D encoder width.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput


def text_config(
    backbone: str, *, vocabulary: int, width: int, layers: int, heads: int, dropout: float, pad: int
) -> PretrainedConfig:
    """The configuration of a `transformers` text encoder: that of a pretrained one, or a small BERT from scratch."""
    if backbone:
        return AutoConfig.from_pretrained(backbone)
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=128,
        type_vocab_size=2,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=pad,
    )


class WordVectors(nn.Module):
    """A text encoder without layers: a token's state is its vector, so a text is a bag of words."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.vectors = nn.Embedding(config.vocab_size, config.hidden_size)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.vectors

    def set_input_embeddings(self, vectors: nn.Embedding) -> None:
        self.vectors = vectors

    def forward(self, input_ids: Tensor, **_: Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.vectors(input_ids))


class TextEncoder(nn.Module):
    """A `transformers` encoder over token ids, or the words' vectors alone where its configuration has no layers. Used twice:
    `QueryEncoder` for queries, `TitleEncoder` for titles."""

    def __init__(self, config: PretrainedConfig, width: int) -> None:
        super().__init__()
        self.backbone = AutoModel.from_config(config) if config.num_hidden_layers else WordVectors(config)
        # Words further apart than positions: with BERT's own 0.02 for both, two equal words at different places look as unlike
        # as two different words, and learning to match them costs the first hundred steps. Pretrained weights overwrite this.
        nn.init.normal_(self.backbone.get_input_embeddings().weight, std=0.1)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # tokens are pooled by their mean [team: better than the first token]
        self.project = nn.Linear(config.hidden_size, width) if config.hidden_size != width else nn.Identity()

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Token states (B, L, D) of ids int64 (B, L), mask (B, L) with 1 at real tokens, segments (B, L) in {0, 1}."""
        known = (
            {}
            if segments is None or getattr(self.backbone.config, "type_vocab_size", 0) < 2
            else {"token_type_ids": segments}
        )
        return self.project(self.backbone(input_ids=ids, attention_mask=mask, **known).last_hidden_state)


class QueryEncoder(TextEncoder):
    """Encodes the shopper's query; separate from the title's because queries are brief and titles are not [paper]."""


class TitleEncoder(TextEncoder):
    """Encodes the seller's title."""


class ImageEncoder(nn.Module):
    """A `timm` backbone whose feature map at one level becomes the patches."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, backbone: str, *, image_size: int, level: int, width: int, pretrained: bool = False) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, pretrained=pretrained, features_only=True, out_indices=(level,))
        self.backbone.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(self.MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(self.STD).view(1, 3, 1, 1) * 255)
        channels, reduction = self.backbone.feature_info.channels()[0], self.backbone.feature_info.reduction()[0]
        patches = -(-image_size // reduction)
        self.project = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.zeros(1, patches * patches, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch states (B, P, D), row by row, of RGB pixels uint8 (B, S, S, 3)."""
        pixels = pixels.permute(0, 3, 1, 2).to(self.project.weight.dtype)  # (B, 3, S, S), channels last in memory
        feature_map = self.backbone((pixels - self.mean) / self.std)[0]  # (B, C, s, s)
        return self.norm(self.project(feature_map.flatten(2).transpose(1, 2)) + self.position)


class ImagePool(nn.Module):
    """Several photographs (or video frames) of one product become one set of patches: attention over photographs (ours; the
    paper names video as future work).

    Each photograph is scored by its mean patch against one learned key; a product's patches are the softmax-weighted mean of
    those of its photographs. The key starts at zero, so training begins with the plain mean. A product with one
    photograph passes through unchanged, and a batch without further ones costs nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.zeros(width))

    def forward(self, states: Tensor, owner: Tensor) -> Tensor:
        """states (B + M, P, D): the first photograph of B products, then M further ones, `owner` int64 (M,) saying whose
        -> (B, P, D)."""
        B = len(states) - len(owner)
        if len(owner) == 0:
            return states
        owner = torch.cat([torch.arange(B, device=owner.device), owner])  # (B + M,)
        scores = (mean_pool(states) @ self.key).float()
        largest = scores.new_full((B,), -torch.inf).scatter_reduce(0, owner, scores.detach(), "amax")
        weights = (scores - largest[owner]).exp()
        weights = weights / weights.new_zeros(B).index_add(0, owner, weights)[owner]
        weighted = weights.to(states.dtype)[:, None, None] * states
        return states.new_zeros(B, *states.shape[1:]).index_add(0, owner, weighted)


def mean_pool(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over real positions: states (B, L, D), mask (B, L) with 1 at real ones -> (B, D). Padding never counts."""
    if mask is None:
        return states.mean(dim=1)
    weight = mask.to(states.dtype)
    return torch.einsum("bld,bl->bd", states, weight) / weight.sum(dim=1, keepdim=True).clamp(min=1)
