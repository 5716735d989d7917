"""Batches of clicked (query, product) pairs, each a pure function of (seed, stage, step); what disturbs rows in training lives here too.

Knows no model but for mining hard negatives.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed.nn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from makelib.data.catalog import Catalog
from makelib.data.text import encode, train_tokenizer, word_starts
from makelib.model.keywords import FalseNegatives, KeywordTable, Masks, WordTables, enrich
from makelib.model.make import MakeModel, with_further
from makelib.runtime import UserError
from makelib.settings import Settings

STAGES = ("pretrain", "finetune")


class Batch(NamedTuple):
    """`inputs` is what the model reads (rows of this process), `pairs` what the losses need (rows of all processes)."""

    inputs: dict[str, Tensor]
    pairs: dict[str, Tensor]


def tokenizer_for(catalog: Catalog, settings: Settings) -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained text encoder, or one trained on titles and training queries."""
    if settings.model.text_backbone:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(settings.model.text_backbone)
    queries = catalog.queries["query"].iloc[catalog.query_rows("train")]
    return train_tokenizer([*catalog.products["title"].fillna(""), *queries], settings.text.vocabulary)


class Batches:
    """Batches of clicked (query, product) pairs, each a pure function of (seed, stage, step).

    Args: catalog; tokenizer; settings; seed; rank and world of this process.
    """

    def __init__(
        self,
        catalog: Catalog,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.catalog, self.tokenizer, self.settings, self.seed = catalog, tokenizer, settings, seed
        self.rank, self.world = rank, world
        self.queries, self.products = catalog.clicks("train")
        if len(self.queries) == 0:
            raise UserError(
                f"Catalogue {catalog.name!r} has no clicks on training queries, so there is nothing to learn from."
            )
        self.tables = WordTables.of(catalog)
        self.keywords = KeywordTable(self.tables, settings.keywords)
        self.false_negatives = FalseNegatives(catalog, self.tables)
        titles = catalog.products["title"].fillna("").tolist()
        self.query_texts = catalog.queries["query"].tolist()
        self.titles = encode(tokenizer, titles, settings.text.title_tokens)
        self.query_tokens = encode(tokenizer, self.query_texts, settings.text.query_tokens)
        if settings.objectives.masked_language:
            self.title_words = word_starts(tokenizer, titles, settings.text.title_tokens)
        self.pixels, _ = catalog.images(settings.model.image_size)
        self.further = catalog.further_images(settings.model.image_size)
        clicks = np.bincount(self.products, minlength=len(catalog)).astype(np.float32)
        self.log_popularity = np.log((clicks + 1) / (clicks.sum() + len(clicks)))
        pairs, counts = np.unique(np.stack([self.queries, self.products]), axis=1, return_counts=True)
        confident = pairs[:, counts >= 2]
        self.confident = confident if confident.shape[1] >= settings.training.batch_size else pairs
        self.mined: np.ndarray | None = None

    def rows(self, stage: str, step: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
        """Query rows and product rows of the whole batch over all processes, and the step's source of randomness."""
        size = self.settings.training.batch_size * self.world
        queries, products = (self.queries, self.products) if stage == "pretrain" else self.confident
        random = np.random.default_rng([self.seed, STAGES.index(stage), step])
        if self.settings.training.unique_queries:
            order = random.permutation(len(queries))
            _, first = np.unique(self.false_negatives.strings[queries[order]], return_index=True)
            chosen = order[np.sort(first)[:size]]
        else:
            at = np.arange(step * size, (step + 1) * size)
            epochs = np.unique(at // len(queries))
            order = {
                e: np.random.default_rng([self.seed, STAGES.index(stage), 1_000_000 + e]).permutation(len(queries))
                for e in epochs
            }
            chosen = np.concatenate([order[e][at[at // len(queries) == e] % len(queries)] for e in epochs])
        return queries[chosen], products[chosen], random

    def masks(self, queries: np.ndarray, products: np.ndarray) -> Masks:
        """Positives and negatives as the setting `keywords.false_negatives` says: `none`, `rule` or `oracle`."""
        return getattr(self.false_negatives, self.settings.keywords.false_negatives)(queries, products)

    def __call__(self, stage: str, step: int) -> Batch:
        """The batch of one step as CPU tensors."""
        settings = self.settings
        queries, products, random = self.rows(stage, step)
        B = len(queries) // self.world
        mine = slice(self.rank * B, (self.rank + 1) * B)
        present = self.catalog.present[products]
        if settings.model.fusion not in ("title", "image"):
            hidden = random.random(len(products))  # title hidden below the rate, image above 1 - rate
            rate = settings.training.modality_dropout
            both = present.all(axis=1)
            present[both & (hidden < rate), 0] = False
            present[both & (hidden > 1 - rate), 1] = False
        masks = self.masks(queries, products)
        if settings.keywords.enrichment:
            extra = enrich(self.keywords, self.tables.queries[queries], products, settings.keywords, random)[mine]
        # what follows differs between processes: each disturbs its own rows
        random = np.random.default_rng([self.seed, STAGES.index(stage), step, self.rank])
        inputs = {
            **_trimmed("query", self.query_tokens, queries[mine]),
            **self._product_inputs("", products[mine], present[mine], random),
            "negatives": masks.negatives[mine, mine],
        }
        drop_words(inputs["query_mask"], settings.training.word_dropout, random)
        pairs = {
            "positives": masks.positives,
            "negatives": masks.negatives,
            "present": present.astype(np.float32),
            "valid": present[mine].all(axis=1),
            "log_popularity": self.log_popularity[products],
        }
        if settings.keywords.enrichment:
            texts = [self.query_texts[row] for row in queries[mine]]
            enriched = encode(self.tokenizer, texts, settings.text.enriched_tokens, pairs=extra)
            inputs |= {f"enriched_{name}": array for name, array in enriched.items()}
        if stage == "finetune" and self.mined is not None:
            column = random.integers(self.mined.shape[1], size=B)
            hard = self.mined[queries[mine], column]
            inputs |= self._product_inputs("negative_", hard, self.catalog.present[hard], random)
        if settings.objectives.masked_language and settings.model.fusion != "image":
            ids, real = inputs["title_ids"], inputs["title_mask"] > 0
            drawn = np.take_along_axis(random.random(ids.shape), self.title_words[products[mine], : ids.shape[1]], 1)
            chosen = real & (ids != self.tokenizer.cls_token_id) & (drawn < 0.15)  # words of Han characters as a whole
            if chosen.any():
                pairs["masked_words"] = ids[chosen]
                inputs |= {"masked_ids": np.where(chosen, self.tokenizer.mask_token_id, ids), "masked_at": chosen}
        return Batch(
            *({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in part.items()} for part in (inputs, pairs))
        )

    def _product_inputs(
        self, prefix: str, rows: np.ndarray, present: np.ndarray, random: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """A hidden title is one [CLS], a hidden image is black and alone; their weight is 0 either way."""
        tokens = _trimmed(f"{prefix}title", self.titles, rows)
        drop_words(tokens[f"{prefix}title_mask"], self.settings.training.word_dropout, random)
        tokens[f"{prefix}title_mask"][~present[:, 0], 1:] = 0
        pixels, owner = with_further(self.pixels[rows], self.further, np.where(present[:, 1], rows, -1))
        if self.settings.training.augment_images:
            pixels = augment(pixels, random)
        pixels[: len(rows)][~present[:, 1]] = 0
        return {
            **tokens,
            f"{prefix}pixels": pixels,
            f"{prefix}owner": owner,
            f"{prefix}present": present.astype(np.float32),
        }

    def mine(self, model: MakeModel, first: int = 50, last: int = 300) -> np.ndarray:
        """Hard negatives for fine-tuning, product rows int64 (Q, k): what the model ranks 50th to 300th for a training query,
        without the products that shoppers clicked for it."""
        texts = self.catalog.products["title"].fillna("").tolist()
        vectors = torch.from_numpy(
            model.encode_products(texts, self.pixels, self.catalog.present[:, 1], self.further).embedding
        )
        first, last = min(first, len(texts) // 4), min(last, len(texts) // 2)
        rows = np.unique(self.queries)
        queries = torch.from_numpy(model.encode_queries([self.query_texts[row] for row in rows]))
        mined = np.zeros((len(self.query_texts), last - first), dtype=np.int64)
        strings, groups = self.false_negatives.strings, self.false_negatives.groups
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            ranked = (queries[start : start + 512] @ vectors.T).topk(last, dim=1).indices.numpy()
            clicked = self.false_negatives.clicked[strings[part]]
            for row, candidates, known in zip(part, ranked, clicked, strict=True):
                pool = candidates[first:][~np.isin(groups[candidates[first:]], known.indices)]
                mined[row] = np.resize(pool if len(pool) else candidates[first:], last - first)
        return mined


def drop_words(mask: np.ndarray, share: float, random: np.random.Generator) -> None:
    """Hide a share of the tokens of each row of `mask` (B, L), in place; [CLS], the first, always stays.

    Few intents make a dual encoder learn strings by heart; with words missing at random it has to understand each.
    """
    hidden = random.random(mask.shape) < share
    hidden[:, 0] = False
    mask[hidden] = 0


def augment(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mirrored, shifted by up to an eighth and lit differently, each photograph its own way: uint8 (B, S, S, 3), a copy.

    A catalogue's few thousand photographs are soon learned by heart, and unseen products are then not found.
    """
    B, S = pixels.shape[:2]
    reach = S // 8
    rows, columns = (np.arange(S) + random.integers(-reach, reach + 1, (B, 1)) for _ in range(2))  # (B, S)
    columns = np.where(random.random((B, 1)) < 0.5, S - 1 - columns, columns)
    rows, columns = np.clip(rows, 0, S - 1), np.clip(columns, 0, S - 1)
    moved = pixels[np.arange(B)[:, None, None], rows[:, :, None], columns[:, None, :]]
    light = random.uniform(0.8, 1.2, (B, 1, 1, 1)).astype(np.float32)
    return np.clip(moved * light, 0, 255).astype(np.uint8)


def _trimmed(prefix: str, tokens: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Ids and mask of some rows, cut to the longest of them."""
    mask = tokens["mask"][rows]
    length = max(1, int(mask.sum(axis=1).max(initial=1)))
    return {f"{prefix}_ids": tokens["ids"][rows, :length], f"{prefix}_mask": mask[:, :length].copy()}
