"""Batches of clicked (query, product) pairs, each a pure function of (seed, stage, step); what disturbs rows in training lives here too.

Knows no model but for mining hard negatives.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from makelib.data.catalog import Catalog
from makelib.data.text import Phrases, Tokens
from makelib.data.tokens import title_word_starts, tokens_of
from makelib.model.frozen import at_hand, pictures
from makelib.model.keywords import FalseNegatives, KeywordTable, Masks, WordTables, enrich, keyword_queries
from makelib.model.make import MakeModel, ProductVectors, further_of
from makelib.ranks import gather_rows, place, share
from makelib.runtime import UserError
from makelib.settings import Settings

STAGES = ("pretrain", "finetune")
#: products encoded at a time, so that a catalogue of any size takes the same memory; also what a kill costs at most
SHARD = 16384
#: pairs of the masks made at once, so that memory grows with the batch, not with its square
BLOCK = 2**20


class Batch(NamedTuple):
    """`inputs` is what the model reads (rows of this process); `pairs` what the losses need: `present` and `log_popularity`
    of all rows, of `positives` and `negatives` (b, B) and `shown` (b,) the rows of this process, to be gathered."""

    inputs: dict[str, Tensor]
    pairs: dict[str, Tensor]


class Batches:
    """Batches of clicked (query, product) pairs, each a pure function of (seed, stage, step): the rows of this process.

    `shown` are the photographs, the first ones and the further ones with their owners, where a frozen tower reads its maps
    (`makelib.model.frozen.pictures`) and not the catalogue's pixels.

    Raises `UserError` where there is nothing to learn from, or where the processes cannot share a batch evenly.
    """

    def __init__(
        self,
        catalog: Catalog,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        seed: int,
        shown: tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        self.catalog, self.settings, self.seed = catalog, settings, seed
        self.tokenizer = tokenizer
        self.rank, self.world = place()
        if settings.training.batch_size % self.world:
            raise UserError(
                f"training.batch_size {settings.training.batch_size} cannot be shared evenly by {self.world} processes; "
                "set it to a multiple of their number."
            )
        self.queries, self.products = catalog.clicks("train")
        if len(self.queries) == 0:
            raise UserError(
                f"Catalogue {catalog.name!r} has no clicks on training queries, so there is nothing to learn from."
            )
        self.tables = WordTables.of(catalog)
        self.keywords = KeywordTable.of(catalog, settings.keywords)
        self.false_negatives = FalseNegatives(catalog, self.tables)
        length, size = settings.text.title_tokens, settings.model.image_size
        if settings.keywords.enrichment:
            self.phrases = Phrases(tokenizer, self.keywords.vocabulary)
        self.titles = tokens_of(catalog, "products", tokenizer, length)
        self.query_tokens = tokens_of(catalog, "queries", tokenizer, settings.text.query_tokens)
        if settings.objectives.masked_language:
            starts = title_word_starts(catalog, tokenizer, length)
            self.title_words = dataclasses.replace(self.titles, ids=starts, pad=0)
        self.pixels, self.further = shown or (catalog.images(size)[0], catalog.further_images(size))
        clicks = np.bincount(self.products, minlength=len(catalog)).astype(np.float32)
        self.log_popularity = np.log((clicks + 1) / (clicks.sum() + len(clicks)))
        self.mined: np.ndarray | None = None
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    @functools.cached_property
    def confident(self) -> np.ndarray:
        """Query and product rows that were clicked more than once, int64 (2, n); all of them where these are too few."""
        pairs, counts = np.unique(self.queries * len(self.catalog) + self.products, return_counts=True)
        repeated = pairs[counts >= 2]
        chosen = repeated if len(repeated) >= self.settings.training.batch_size else pairs
        return np.stack(np.divmod(chosen, len(self.catalog)))

    def rows(self, stage: str, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Query rows and product rows of the whole batch over all processes, int64 (B,)."""
        size = self.settings.training.batch_size
        queries, products = (self.queries, self.products) if stage == "pretrain" else self.confident
        if self.settings.training.unique_queries:
            random, strings = self._random("order", stage, step), self.false_negatives.strings
            drawn = random.integers(len(queries), size=4 * size)
            _, first = np.unique(strings[queries[drawn]], return_index=True)
            chosen = drawn[np.sort(first)[:size]]
            if len(chosen) < size:
                # strings are few: drawn once each, in proportion to their clicks (Gumbel top-k), and a click of each
                order, begin, counts = self._by_string(stage)
                once = np.argsort(-np.log(counts) - random.gumbel(size=len(counts)))[:size]
                chosen = order[begin[once] + random.integers(counts[once])]
        else:
            at = np.arange(step * size, (step + 1) * size)
            epochs, places = at // len(queries), at % len(queries)
            chosen = np.concatenate(
                [self._order(stage, e, len(queries))[places[epochs == e]] for e in np.unique(epochs)]
            )
        chosen = chosen[: len(chosen) // self.world * self.world]  # as many rows for each process
        return queries[chosen], products[chosen]

    def _order(self, stage: str, epoch: int, clicks: int) -> np.ndarray:
        """The order of the clicks in an epoch; the last two are kept, for drawing one takes longer than a step."""
        if (stage, epoch) not in self._orders:
            self._orders = dict([*self._orders.items()][-1:])
            self._orders[stage, epoch] = self._random("order", stage, epoch).permutation(clicks)
        return self._orders[stage, epoch]

    @functools.cache  # noqa: B019  as long as the batches
    def _by_string(self, stage: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Clicks in the order of their query strings, where each string's begin there and how many it has."""
        strings = self.false_negatives.strings[self.queries if stage == "pretrain" else self.confident[0]]
        _, begin, counts = np.unique(np.sort(strings), return_index=True, return_counts=True)
        return np.argsort(strings, kind="stable"), begin, counts

    def _random(self, purpose: str, stage: str, number: int) -> np.random.Generator:
        """A stream for each purpose and step or epoch; all processes draw the same numbers."""
        key = (("order", "rows").index(purpose), STAGES.index(stage), int(number))
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def masks(self, queries: np.ndarray, products: np.ndarray) -> Masks:
        """Positives and negatives as the setting `keywords.false_negatives` says: bool (B, B)."""
        return Masks(*map(np.concatenate, zip(*self._masks(queries, products, slice(None), None), strict=True)))

    def _masks(
        self, queries: np.ndarray, products: np.ndarray, rows: slice, asked: sp.csr_matrix | None
    ) -> Iterator[Masks]:
        """The same for some rows of the batch, `BLOCK` pairs at a time, where `asked` stands for the queries that it replaces."""
        decide = getattr(self.false_negatives, self.settings.keywords.false_negatives)
        begin, end, _ = rows.indices(len(queries))
        for at in range(begin, end, size := max(1, BLOCK // len(queries))):
            block = slice(at, min(at + size, end))
            masks = decide(queries, products, block)
            if asked is not None:
                self.false_negatives.replace(masks, asked, products, block)
            yield masks

    def __call__(self, stage: str, step: int) -> Batch:
        """The batch of one step as CPU tensors. What is random is drawn for all rows, so that it does not matter which process
        has which."""
        settings, random = self.settings, self._random("rows", stage, step)
        queries, products = self.rows(stage, step)
        B = len(queries)
        mine = slice(B * self.rank // self.world, B * (self.rank + 1) // self.world)
        present = self.catalog.present[products]
        if settings.model.fusion not in ("title", "image"):
            hidden = random.random(B)  # title hidden below the rate, image above 1 - rate
            rate = settings.training.modality_dropout
            both = present.all(axis=1)
            present[both & (hidden < rate), 0] = False
            present[both & (hidden > 1 - rate), 1] = False
        whole, asked = dict(zip(("query_ids", "query_mask"), self.query_tokens.padded(queries), strict=True)), None
        whole["draws"] = random.random((B, 2), np.float32)
        replaced = np.zeros(B, bool)
        if settings.keywords.enrichment and settings.keywords.keyword_queries and stage == "pretrain":
            words, asked = keyword_queries(self.keywords, products, settings.keywords.keyword_queries, random)
            replaced = np.any(words >= 0, axis=1)
            either = zip(replaced, self.phrases.alone(words), self.query_tokens.rows(queries), strict=True)
            rows = [made[: settings.text.query_tokens] if own else typed for own, made, typed in either]
            whole["query_ids"], whole["query_mask"] = Tokens.joined(rows, self.query_tokens.pad).padded(slice(None))
        said = whole["query_mask"].copy()
        drop_words(whole["query_mask"], settings.training.word_dropout, random)
        inputs = self._product_inputs("", products, present, mine, whole, random)
        pairs = {
            **self._pairs(self._masks(queries, products, mine, asked), present[:, 1]),
            "present": present.astype(np.float32),
            "log_popularity": self.log_popularity[products],
        }
        if not settings.training.chunk:
            inputs["negatives"] = pairs["negatives"]
        if settings.keywords.enrichment:
            extra = enrich(self.keywords, self.tables.queries[queries], products, settings.keywords, random)[mine]
            enriched = self.phrases.behind(self.query_tokens.rows(queries[mine]), extra, settings.text.enriched_tokens)
            # the enriched query lacks the same words, or it would teach what the raw one could know without it
            dropped = ((said > whole["query_mask"]) & ~replaced[:, None])[mine, : enriched["mask"].shape[1]]
            enriched["mask"][:, : dropped.shape[1]][dropped] = 0
            inputs |= {f"enriched_{name}": array for name, array in enriched.items()}
        if stage == "finetune" and self.mined is not None:
            hard = self.mined[queries, random.integers(self.mined.shape[1], size=B)]
            inputs |= self._product_inputs("negative_", hard, self.catalog.present[hard], mine, whole, random)
        if stage == "pretrain" and settings.objectives.masked_language and settings.model.fusion != "image":
            ids, real = whole["title_ids"], whole["title_mask"] > 0
            drawn = np.take_along_axis(random.random(ids.shape), self.title_words.padded(products)[0], 1)
            chosen = real & (ids != self.tokenizer.cls_token_id) & (drawn < 0.15)  # words of Han characters as a whole
            if chosen.any():
                pairs["masked_count"] = chosen.sum() / self.world
                whole |= {"masked_ids": np.where(chosen, self.tokenizer.mask_token_id, ids), "masked_at": chosen}
        inputs |= {name: array[mine] for name, array in whole.items()}
        return Batch(
            *({name: torch.from_numpy(np.array(a, order="C")) for name, a in part.items()} for part in (inputs, pairs))
        )

    def _pairs(self, blocks: Iterator[Masks], has_image: np.ndarray) -> dict[str, np.ndarray]:
        """Masks of the rows of this process, bool (b, B), with `training.chunk` as bits (`makelib.model.caching.unpacked`), and whether
        a row has a positive with a photograph, bool (b,)."""
        kept = functools.partial(np.packbits, axis=1) if self.settings.training.chunk else np.asarray
        parts = [(kept(own), kept(others), (own & has_image).any(axis=1)) for own, others in blocks]
        whole = map(np.concatenate, zip(*parts, strict=True))
        return dict(zip(("positives", "negatives", "shown"), whole, strict=True))

    def _product_inputs(
        self,
        prefix: str,
        rows: np.ndarray,
        present: np.ndarray,
        mine: slice,
        whole: dict[str, np.ndarray],
        random: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """Photographs of the rows of this process; tokens of all rows are put into `whole`.

        A hidden title is one [CLS], a hidden image is black and alone; their weight is 0 either way.
        """
        ids, mask = self.titles.padded(rows)
        drop_words(mask, self.settings.training.word_dropout, random)
        mask[~present[:, 0], 1:] = 0
        named = {"title_ids": ids, "title_mask": mask, "present": present.astype(np.float32)}
        whole |= {f"{prefix}{name}": array for name, array in named.items()}
        whole[f"{prefix}category"] = self.catalog.category_numbers[rows]
        places, owner = further_of(self.further[1], np.where(present[:, 1], rows, -1))
        draws = random.random((len(rows) + len(owner), 4))
        here = (owner >= mine.start) & (owner < mine.stop)
        pixels = np.concatenate([self.pixels[rows[mine]], self.further[0][places[here]]])
        draws = np.concatenate([draws[mine], draws[len(rows) :][here]])
        if pixels.dtype != np.uint8:  # a frozen tower's maps, of the photograph and of its mirror image
            mirrored = (draws[:, 2] < 0.5) & self.settings.training.augment_images
            pixels = pixels[np.arange(len(pixels)), mirrored.astype(np.int64)]
        elif self.settings.training.augment_images:
            pixels = augment(pixels, draws)
        pixels[: mine.stop - mine.start][~present[mine, 1]] = 0
        return {f"{prefix}pixels": pixels, f"{prefix}owner": owner[here] - mine.start}

    def mine(self, model: MakeModel) -> np.ndarray:
        """Hard negatives for fine-tuning, product rows int64 (Q, k): what the model ranks 50th to 300th for a training query,
        without those that `FalseNegatives.admissible` keeps."""
        vectors = torch.from_numpy(gather_rows(encoded(model, self.catalog, share(len(self.catalog))).embedding))
        first, last = min(50, len(vectors) // 4), min(300, len(vectors) // 2)
        everyone = np.unique(self.queries)
        rows = everyone[share(len(everyone))]
        queries = torch.from_numpy(model.encode_queries(self.catalog.queries["query"].iloc[rows].tolist()))
        mined = np.zeros((len(self.catalog.queries), last - first), dtype=np.int32)
        kind = self.settings.keywords.false_negatives
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            ranked = (queries[start : start + 512] @ vectors.T).topk(last, dim=1).indices.numpy()[:, first:]
            for row, candidates in zip(part, ranked, strict=True):
                pool = candidates[self.false_negatives.admissible(kind, row, candidates)]
                mined[row] = np.resize(pool if len(pool) else candidates, last - first)
        mined[everyone] = gather_rows(mined[rows])
        return mined


def encoded(model: MakeModel, catalog: Catalog, rows: slice | np.ndarray) -> ProductVectors:
    """Vectors of some products of a catalogue: `rows` from one to another, of all in turn, or a few, int64 (n,), for which neither
    tokens nor maps of all are made."""
    texts, whole = catalog.products["title"].iloc[rows].fillna("").tolist(), isinstance(rows, slice)
    pixels, present, (further, owners) = pictures(catalog, model) if whole else at_hand(catalog, model)
    places, owner = further_of(owners, np.arange(len(catalog))[rows] if whole else rows)
    titles = tokens_of(catalog, "products", model.tokenizer, model.config.title_tokens)[rows] if whole else texts
    more, categories = (further[places], owner), catalog.category_numbers[rows]
    return model.encode_products(titles, pixels[rows], present[rows], more, categories)


def drop_words(mask: np.ndarray, share: float, random: np.random.Generator) -> None:
    """Hide a share of the tokens of each row of `mask` (B, L), in place; [CLS], the first, always stays.

    Few intents make a dual encoder learn strings by heart; with words missing at random it has to understand each.
    """
    hidden = random.random(mask.shape) < share
    hidden[:, 0] = False
    mask[hidden] = 0


def augment(pixels: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mirrored, shifted by up to an eighth and lit differently, each photograph its own way: uint8 (B, S, S, 3), a copy.
    `draws` (B, 4), uniform in [0, 1), are what is random about it.

    A catalogue's few thousand photographs are soon learned by heart, and unseen products are then not found.
    """
    B, S = pixels.shape[:2]
    reach = S // 8
    moves = np.floor(draws[:, :2] * (2 * reach + 1)).astype(np.int64) - reach
    rows, columns = (np.arange(S) + moves[:, [axis]] for axis in range(2))  # (B, S)
    columns = np.where(draws[:, [2]] < 0.5, S - 1 - columns, columns)
    rows, columns = np.clip(rows, 0, S - 1), np.clip(columns, 0, S - 1)
    moved = pixels[np.arange(B)[:, None, None], rows[:, :, None], columns[:, None, :]]
    light = (0.8 + 0.4 * draws[:, 3, None, None, None]).astype(np.float32)
    return np.clip(moved * light, 0, 255).astype(np.uint8)
