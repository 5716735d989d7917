"""`MakeModel`: query, title and image encoders and a fusion, as a `transformers` model that saves and loads itself.

Tensors in, tensors out is `query` and `product`; strings and pixels in, NumPy out is `encode_queries` and
`encode_products`. Knows nothing of training, indexes or catalogues.

B batch, L tokens, P patches, D encoder width, d retrieval width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging as transformers_logging

from makelib.data.text import Tokens
from makelib.model.encoders import (
    ImageEncoder,
    ImagePool,
    QueryEncoder,
    TitleEncoder,
    make_backbone,
    mean_pool,
    text_config,
)
from makelib.model.fusion import Product, make_fusion
from makelib.model.losses import full
from makelib.model.matching import MatchingHead, joined, sampled
from makelib.ranks import gather, place
from makelib.runtime import UserError, fingerprint
from makelib.settings import FUSIONS, Model, Objectives, Text, to_dict

transformers_logging.disable_progress_bar()  # a model of this size loads in milliseconds


class MakeConfig(PretrainedConfig):
    """Everything that the architecture depends on; `makelib.settings.Model` and `Text` say what each key means."""

    model_type = "make"
    fusion: str = "adaptive"
    dim: int = 64
    width: int = 64
    heads: int = 4
    dropout: float = 0.0
    summary_dropout: float = 0.0
    gate_temperature: float = 1.0
    shared_text: bool = False
    #: the configuration of the text encoders
    text: dict | None = None
    image_backbone: str = "test_resnet.r160_in1k"
    image_size: int = 32
    image_levels: Sequence[int] = (0, 1, 2, 3)
    image_frozen: bool = False
    query_tokens: int = 12
    title_tokens: int = 28
    #: how many categories the catalogue has, for the control with a weight for each
    categories: int = 0
    #: which of `HEADS` there are
    heads_for: Sequence[str] = ()


AutoConfig.register("make", MakeConfig)

#: objectives that need a head of their own
HEADS = ("title_image_matching", "query_product_matching", "masked_language")
#: what a row needs of the others to be matched with one of them
OTHERS = ("p", "u_v", "H_t", "H_v", "title_mask", "present")


@dataclass(frozen=True)
class ProductVectors:
    """Encoded products as NumPy arrays: `embedding` (N, d) unit length, `weights` (N, 2), `parts` (N, 2, d); see `Product`.
    `parts` is None where it was not kept."""

    embedding: np.ndarray
    weights: np.ndarray
    parts: np.ndarray | None = None


class MakeModel(PreTrainedModel):
    """Three encoders and a fusion. Query and title encoder share their word embeddings.

    Example:
        >>> model = MakeModel.from_pretrained("reports/quick/models/…/model")        # doctest: +SKIP
        >>> model.encode_queries(["green backpack"]).shape                        # doctest: +SKIP
        (1, 64)
    """

    config_class = MakeConfig
    base_model_prefix = "make"
    main_input_name = "query_ids"

    def __init__(self, config: MakeConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        super().__init__(config)
        if config.fusion not in FUSIONS:
            raise UserError(f"Unknown fusion {config.fusion!r}. Choose one of: {', '.join(FUSIONS)}.")
        D, d, text = config.width, config.dim, AutoConfig.for_model(**config.text)
        self.bag_of_words = text.num_hidden_layers == 0
        self.sees_title, self.sees_image = config.fusion != "image", config.fusion != "title"
        self.query_encoder = QueryEncoder(text, D)
        # a mean loses some of its entries in training: a few thousand query strings are soon learned by heart
        self.query_project = nn.Sequential(nn.Dropout(config.summary_dropout), nn.Linear(D, d))
        if config.shared_text:
            self.title_encoder, self.title_project = self.query_encoder, self.query_project
        else:
            self.title_encoder = TitleEncoder(text, D)
            self.title_project = nn.Sequential(nn.Dropout(config.summary_dropout), nn.Linear(D, d))
        seen = {"image_size": config.image_size, "levels": config.image_levels, "frozen": config.image_frozen}
        self.image_encoder = ImageEncoder(config.image_backbone, width=D, **seen)
        self.image_pool = ImagePool(D)
        self.image_project = nn.Sequential(nn.Dropout(config.summary_dropout), nn.Linear(D, d))
        self.fusion = make_fusion(config, self.title_project)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if "title_image_matching" in config.heads_for:
            self.title_image_head = MatchingHead(D, config.heads)
        if "query_product_matching" in config.heads_for:
            self.query_product_head = MatchingHead(D, config.heads)
        if "masked_language" in config.heads_for:
            self.word_head = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D), nn.Linear(D, text.vocab_size))
        if not self.sees_image:
            del self.image_encoder, self.image_pool, self.image_project
        if not self.sees_title:
            del self.title_encoder, self.title_project
        else:
            # the title side starts as a copy of the query side, as two copies of one pretrained encoder would: equal words
            # match from the first step
            self.title_encoder.load_state_dict(self.query_encoder.state_dict())
            self.title_project.load_state_dict(self.query_project.state_dict())
            self.title_encoder.backbone.set_input_embeddings(self.query_encoder.backbone.get_input_embeddings())
            self._tied_weights_keys = self._shared_weights()
        self.tokenizer = tokenizer
        self.post_init()

    def _shared_weights(self) -> dict[str, str]:
        """What two encoders share (the word embeddings at least) stands in the checkpoint once, under the query encoder's name."""
        first: dict[int, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        return {name: known for name, each in named if (known := first.setdefault(id(each), name)) != name}

    def _init_weights(self, module: nn.Module) -> None:
        """Every module keeps its own library's initialisation."""

    # -- tensors in, tensors out ----------------------------------------------------------------------------------

    def scale(self) -> Tensor:
        """`s = exp(logit_scale)`, kept in [1, 100]; what cosine similarities are multiplied with."""
        return self.logit_scale.exp().clamp(1, 100)

    def query_states(self, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """`H_q` (B, L, D)."""
        return self.query_encoder(ids, mask, segments)

    def query(
        self, ids: Tensor, mask: Tensor, segments: Tensor | None = None, *, states: Tensor | None = None
    ) -> Tensor:
        """Query embedding `q` (B, d), unit length."""
        states = self.query_states(ids, mask, segments) if states is None else states
        return F.normalize(self.query_project(mean_pool(states, mask)), dim=-1)

    def states(
        self, title_ids: Tensor, title_mask: Tensor, pixels: Tensor, owner: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`H_t` (B, L, D) and `H_v` (B, P, D); zeros of one position for a modality that this fusion does not look at."""
        H_t = self.title_encoder(title_ids, title_mask) if self.sees_title else None
        H_v = self.image_encoder(pixels) if self.sees_image else None
        if H_v is not None and owner is not None:
            H_v = self.image_pool(H_v, owner)
        H_t = H_v.new_zeros(len(title_ids), title_ids.shape[1], self.config.width) if H_t is None else H_t
        H_v = H_t.new_zeros(len(title_ids), 1, self.config.width) if H_v is None else H_v
        return H_t, H_v

    def summaries(self, H_t: Tensor, title_mask: Tensor, H_v: Tensor) -> tuple[Tensor, Tensor]:
        """Unimodal summaries `u_t`, `u_v` (B, d), unit length (zeros for a modality that is not looked at)."""
        zeros = H_t.new_zeros(len(H_t), self.config.dim)
        u_t = F.normalize(self.title_project(mean_pool(H_t, title_mask)), dim=-1) if self.sees_title else zeros
        u_v = F.normalize(self.image_project(mean_pool(H_v)), dim=-1) if self.sees_image else zeros
        return u_t, u_v

    def product(
        self,
        title_ids: Tensor,
        title_mask: Tensor,
        pixels: Tensor,
        present: Tensor,
        category: Tensor,
        owner: Tensor | None = None,
    ) -> Product:
        """Product embedding with its weights and parts; never sees a query.

        Args: title ids and mask (B, L); pixels uint8 (B + M, S, S, 3), the first photograph of each product and then M further
            ones, whose products `owner` int64 (M,) names; present (B, 2), 1 where title, image is there; category int64 (B,), its
            number, 0 for none.
        """
        H_t, H_v = self.states(title_ids, title_mask, pixels, owner)
        u_t, u_v = self.summaries(H_t, title_mask, H_v)
        return self.fusion(H_t, title_mask, H_v, u_t, u_v, present, category, title_ids if self.bag_of_words else None)

    def forward(self, batch: dict[str, Tensor], weights: Objectives) -> dict[str, Tensor]:
        """Features for `makelib.model.losses.objectives`: those of `features`, and of the `matches` with the rows of all processes."""
        features = self.features(batch, weights)
        if "H_q" in features:
            whole = {name: gather(tensor) for name, tensor in (batch | features).items() if name in OTHERS}
            first = place()[0] * len(features["q"])
            features |= self.matches(features, whole, batch, batch["negatives"], first, weights)
        return features

    def features(self, batch: dict[str, Tensor], weights: Objectives) -> dict[str, Tensor]:
        """What each row is by itself; what is computed follows from what the batch holds, and nothing is computed for an objective
        without a weight.

        Always `q, p (B, d)`, `u_t, u_v (B, d)`, `w (B, 2)`, `scale`. With `enriched_*` in the batch: `q_plus (B, d)`.
        With `negative_*` (hard negatives): `p_hard (B, d)`. With `masked_ids`: `word_loss` (1,), the summed cross-entropy of the
        masked words. With a weight for matching: `H_q (B, L, D)`, `H_t (B, L, D)`, `H_v (B, P, D)`.
        """
        mask, present, words = batch["title_mask"], batch["present"], batch["title_ids"] if self.bag_of_words else None
        H_q = self.query_states(batch["query_ids"], batch["query_mask"])
        H_t, H_v = self.states(batch["title_ids"], mask, batch["pixels"], batch.get("owner"))
        u_t, u_v = self.summaries(H_t, mask, H_v)
        product = self.fusion(H_t, mask, H_v, u_t, u_v, present, batch["category"], words)
        features = {
            "q": self.query(None, batch["query_mask"], states=H_q),
            "p": product.embedding,
            "u_t": u_t,
            "u_v": u_v,
            "w": product.weights,
            "scale": self.scale(),
        }
        if "enriched_ids" in batch and (weights.keyword_enhanced or weights.distillation):
            features["q_plus"] = self.query(batch["enriched_ids"], batch["enriched_mask"], batch["enriched_segments"])
        if "negative_title_ids" in batch:
            names = [f"negative_{name}" for name in ("title_ids", "title_mask", "pixels", "present", "category")]
            features["p_hard"] = self.product(*(batch[name] for name in names), batch.get("negative_owner")).embedding
        if "masked_ids" in batch and self.sees_title:
            states = self.title_encoder(batch["masked_ids"], mask) + (mean_pool(H_v) * present[:, 1:])[:, None]
            logits, words = self.word_head(states[batch["masked_at"]]), batch["title_ids"][batch["masked_at"]]
            features["word_loss"] = F.cross_entropy(full(logits), words, reduction="sum")[None]
        if weights.title_image_matching or weights.query_product_matching:
            features |= {"H_q": H_q, "H_t": H_t, "H_v": H_v}
        return features

    def matches(
        self,
        own: dict[str, Tensor],
        whole: dict[str, Tensor],
        batch: dict[str, Tensor],
        negatives: Tensor,
        first: int,
        weights: Objectives,
    ) -> dict[str, Tensor]:
        """`title_image_logits` and `query_product_logits` (b, 2) of b rows: of true pairs, and of pairs with one sampled product of all rows.

        Args: features `own` and inputs `batch` of the rows from `first` on, their negatives bool (b, B), and `OTHERS` of all B.
        """
        H_q, H_t, H_v, found = own["H_q"], own["H_t"], own["H_v"], {}
        mask, present, draws = batch["title_mask"], batch["present"], batch["draws"]
        if weights.title_image_matching and self.sees_title and self.sees_image:
            shown = negatives & (whole["present"][:, 1] > 0)
            other = sampled(own["scale"] * own["u_t"] @ whole["u_v"].T, shown, draws[:, 0], first)
            patches = H_v.new_ones(H_v.shape[:2])
            found["title_image_logits"] = torch.stack(
                [self.title_image_head(H_t, mask, V, patches) for V in (H_v, whole["H_v"][other])], dim=1
            )
        if weights.query_product_matching:
            other = sampled(own["scale"] * own["q"] @ whole["p"].T, negatives, draws[:, 1], first)
            others = (whole[name][other] for name in ("H_t", "title_mask", "H_v", "present"))
            pairs = (joined(H_t, mask, H_v, present), joined(*others))
            found["query_product_logits"] = torch.stack(
                [self.query_product_head(H_q, batch["query_mask"], *pair) for pair in pairs], dim=1
            )
        return found

    # -- strings and pixels in, NumPy out -------------------------------------------------------------------------

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Embeddings float32 (n, d) of query strings. Dropout is off while encoding."""
        if len(queries) == 0:
            return np.zeros((0, self.config.dim), np.float32)
        tokens = Tokens.of(self._needs_tokenizer(), list(queries), self.config.query_tokens).padded(slice(None))
        parts = (torch.from_numpy(array).to(self.device).split(512) for array in tokens)
        with _evaluating(self):
            return torch.cat([self.query(*part) for part in zip(*parts, strict=True)]).float().cpu().numpy()

    def encode_products(
        self,
        titles: Sequence[str] | Tokens,
        pixels: np.ndarray,
        has_image: np.ndarray,
        further: tuple[np.ndarray, np.ndarray] | None = None,
        categories: np.ndarray | None = None,
        batch_size: int = 512,
    ) -> ProductVectors:
        """Encode products.

        Args:
            titles: n strings, or their tokens; an empty one counts as missing.
            pixels: uint8 (n, S, S, 3), S the model's `image_size`, or what `makelib.model.frozen.pictures` gives instead;
                memory-mapped arrays are read batch by batch.
            has_image: bool (n,).
            further: photographs after the first, as `Catalog.further_images` returns them: pixels uint8 (M, S, S, 3) and
                int64 (M,), ascending, which of the n products each belongs to.
            categories: int64 (n,), as `Catalog.category_numbers`; only the fusion `category` looks at them.
        """
        if not isinstance(titles, Tokens):
            titles = Tokens.of(self._needs_tokenizer(), titles, self.config.title_tokens)
        if len(titles) == 0:
            nothing = np.zeros((0, 2, self.config.dim), np.float32)
            return ProductVectors(nothing[:, 0], nothing[:, :, 0], nothing)
        outputs, rows, (more, owners) = [], np.arange(len(titles)), further or (pixels[:0], np.zeros(0, np.int64))
        categories = np.zeros(len(titles), np.int64) if categories is None else categories
        with _evaluating(self):
            for start in range(0, len(titles), batch_size):
                piece = slice(start, start + batch_size)
                present = np.stack([titles.written[piece], has_image[piece]], axis=1).astype(np.float32)
                places, owner = further_of(owners, rows[piece])
                shown = np.concatenate([pixels[piece], more[places]])
                shown = shown if shown.dtype == np.uint8 else shown[:, 0]  # not the mirror image
                arrays = (*titles.padded(piece), shown, present, categories[piece], owner)
                product = self.product(*(torch.from_numpy(array).to(self.device) for array in arrays))
                outputs.append([x.float().cpu().numpy() for x in (product.embedding, product.weights, product.parts)])
        return ProductVectors(*(np.concatenate(column) for column in zip(*outputs, strict=True)))

    def _needs_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise UserError(
                "This model has no tokenizer; set `model.tokenizer`, or load a folder that `save_pretrained` wrote."
            )
        return self.tokenizer

    # -- to and from a folder -------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Weights (safetensors), configuration and tokenizer into one folder."""
        super().save_pretrained(folder, **options)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *arguments: Any, **options: Any) -> MakeModel:
        """The inverse of `save_pretrained`; in evaluation mode. Raises `UserError` where the folder holds no model."""
        try:
            model = super().from_pretrained(folder, *arguments, **options)
            model.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{folder} holds no makelib model ({reason}). Train one with `python -m makelib train`."
            ) from error
        return model

    @classmethod
    def from_settings(
        cls,
        model: Model,
        text: Text,
        objectives: Objectives,
        tokenizer: PreTrainedTokenizerBase,
        categories: int = 0,
    ) -> MakeModel:
        """A new model; encoders that name a pretrained backbone start from its weights, the rest from scratch."""
        own = {name: value for name, value in to_dict(model).items() if name in MakeConfig.__annotations__}
        config = MakeConfig(
            **own,
            categories=categories,
            text=text_config(model, tokenizer).to_dict(),
            query_tokens=text.query_tokens,
            title_tokens=text.title_tokens,
            heads_for=[name for name in HEADS if getattr(objectives, name) > 0],
        )
        self = cls(config, tokenizer)
        if model.text_backbone:
            pretrained = AutoModel.from_pretrained(model.text_backbone).state_dict()
            self.query_encoder.backbone.load_state_dict(pretrained, strict=False)
            if self.sees_title:
                self.title_encoder.backbone.load_state_dict(pretrained, strict=False)
        if model.image_pretrained and self.sees_image:
            pretrained = make_backbone(
                model.image_backbone, image_size=model.image_size, levels=model.image_levels, pretrained=True
            )
            self.image_encoder.backbone.load_state_dict(pretrained.state_dict())
        return self

    def fingerprint(self) -> str:
        """Identifies the weights and the configuration; an index carries it to say which model it belongs to."""
        weights = (
            name.encode() + tensor.detach().cpu().contiguous().float().numpy().tobytes()
            for name, tensor in sorted(self.state_dict().items())
        )
        return fingerprint(*weights)


def further_of(owners: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the further photographs of products `rows` stand, and the position in `rows` that each belongs to, int64 (M,) both;
    `owners` int64, ascending, is the product of every further photograph."""
    begin, end = (np.searchsorted(owners, rows, side) for side in ("left", "right"))
    owner = np.repeat(np.arange(len(rows)), end - begin)
    return np.arange(len(owner)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin) + begin[owner], owner


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, fixed batch statistics) and no gradients inside a `with`; the former modes afterwards."""
    learning = [module for module in model.modules() if module.training]
    if learning:  # setting all of them takes a millisecond, asking does not
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in learning:
            module.training = True
