"""The training loop: batches, optimiser, checkpoints, resume, progress. Pre-training, then (optionally) fine-tuning.

Every random choice of a step is drawn from (seed, stage, step), so a run that was killed and resumed gives the same weights as
one that was not, and two processes with half a batch each see what one process with the whole batch sees.
Knows nothing of indexes or test queries.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torch.distributed.nn
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from makelib.catalog import Catalog
from makelib.encoders import ImageEncoder, mean_pool
from makelib.keywords import FalseNegatives, KeywordTable, Masks, WordTables, enrich
from makelib.losses import objectives
from makelib.model import MakeModel, with_further
from makelib.runtime import UserError, atomic_file, atomic_folder, fingerprint, progress
from makelib.settings import Settings, to_dict
from makelib.text import encode, train_tokenizer, word_starts

STAGES = ("pretrain", "finetune")
#: features that every process needs of every other's rows
GATHERED = ("q", "p", "u_t", "u_v", "w", "q_plus", "p_hard")


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


def warm_up_images(catalog: Catalog, settings: Settings) -> Path:
    """Teach a from-scratch image encoder to see before it is asked to retrieve; once per catalogue, for all variants and seeds.

    Stands in for the pretrained backbone that one would name with `model.image_backbone` where downloads are possible: the
    encoder predicts, from the image alone, the words that shoppers typed before they clicked the product and those of its title
    (softmax over words, after Joulin et al. 2016). Only products seen in training take part. Returns a safetensors file
    with the encoder's weights, kept in the catalogue's cache.
    """
    model, training = settings.model, settings.training
    shape = {"image_size": model.image_size, "level": model.image_level, "width": model.width}
    key = fingerprint(
        model.image_backbone,
        model.image_pretrained,
        shape,
        training.image_warmup,
        training.augment_images,
        catalog.fingerprint,
    )
    file = catalog.folder / ".cache" / f"image-encoder-{key}.safetensors"
    if file.is_file():
        return file
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, has_image = catalog.images(model.image_size)
    more, of = catalog.further_images(model.image_size)
    tables = WordTables.of(catalog)
    said = (tables.typed + tables.titles).tocsr()
    useful = has_image & catalog.seen & (said.getnnz(axis=1) > 0)
    rows = np.concatenate([np.flatnonzero(useful), of[useful[of]]])  # the product of each photograph
    said, pixels = said[rows], np.concatenate([pixels[useful], more[useful[of]]])
    torch.manual_seed(0)
    encoder = ImageEncoder(model.image_backbone, pretrained=model.image_pretrained, **shape).to(device).train()
    words = torch.nn.Linear(model.width, said.shape[1]).to(device)
    parameters = [*encoder.parameters(), *words.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=training.weight_decay)
    random, steps = np.random.default_rng(0), training.image_warmup if len(rows) else 0
    size = min(training.batch_size, len(rows))
    bar = progress(range(steps), description="image encoder", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = 5 * learning_rate(
                step, steps, settings
            )  # convolutions with batch norm take larger steps than text
        chosen = random.choice(len(rows), size, replace=False)
        target = torch.from_numpy(said[chosen].toarray()).float().to(device)
        shown = augment(pixels[chosen], random) if training.augment_images else pixels[chosen]
        logits = words(mean_pool(encoder(torch.from_numpy(shown).to(device))))
        loss = torch.nn.functional.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with atomic_file(file) as draft:
        safetensors.torch.save_file({name: t.contiguous().cpu() for name, t in encoder.state_dict().items()}, draft)
    return file


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    peak, warmup = settings.training.learning_rate, max(1, round(settings.training.warmup * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def validation_recall(model: MakeModel, catalog: Catalog, settings: Settings) -> float:
    """Recall@100 of validation queries against the whole catalogue, mean over queries; what early stopping looks at."""
    rows = catalog.query_rows("validation")
    rows = np.random.default_rng(0).permutation(rows)[: settings.evaluation.validation_queries]
    if len(rows) == 0:
        return float("nan")
    titles, size = catalog.products["title"].fillna("").tolist(), settings.model.image_size
    products = torch.from_numpy(
        model.encode_products(titles, *catalog.images(size), catalog.further_images(size)).embedding
    )
    queries = torch.from_numpy(model.encode_queries(catalog.queries["query"].iloc[rows].tolist()))
    found = (queries @ products.T).topk(min(100, len(catalog)), dim=1).indices.numpy()
    full = catalog.relevance(rows) >= 1.0
    counts = full.sum(axis=1)
    recall = np.take_along_axis(full, found, axis=1).sum(axis=1)[counts > 0] / counts[counts > 0]
    return float(recall.mean()) if len(recall) else float("nan")


@dataclass
class _State:
    """What a checkpoint holds beside the tensors."""

    stage: str = "pretrain"
    step: int = 0
    curves: list[dict] = None
    best: float = -math.inf
    stale: int = 0


def train(
    catalog: Catalog,
    settings: Settings,
    seed: int,
    folder: Path,
    *,
    on_step: Callable[[str, int, int], None] | None = None,
    stop_after: int | None = None,
) -> MakeModel:
    """Train a model from the first step, or from the checkpoint that `folder` holds, to the end; returns the best one.

    Best is by validation Recall@100, measured at step 0 and `training.evaluations` times. Writes `folder/curves.parquet` and,
    every `checkpoint_every` steps, `folder/checkpoint`. `on_step(stage, step, steps)` is called after each step;
    `stop_after` ends the process's part after so many steps, as a kill would (for tests of resuming).

    Raises `UserError` on a loss that is not finite, or a checkpoint of other settings.
    """
    folder = Path(folder)
    training = settings.training
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    on_gpu = torch.cuda.is_available()
    precision = {"auto": ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "no", "fp32": "no"}.get(
        training.precision, training.precision
    )
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[unused])
    torch.manual_seed(seed)
    tokenizer = tokenizer_for(catalog, settings)
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer)
    if training.image_warmup and model.sees_image:
        with accelerator.main_process_first():
            seeing = warm_up_images(catalog, settings)
        model.image_encoder.load_state_dict(safetensors.torch.load_file(seeing))
    batches = Batches(
        catalog, tokenizer, settings, seed, rank=accelerator.process_index, world=accelerator.num_processes
    )  # fmt: skip
    optimizer = _optimizer(model, settings)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    identity = fingerprint(to_dict(settings), seed, catalog.fingerprint)
    state, best = _State(curves=[]), _weights(model)
    if (folder / "checkpoint").is_dir():
        state, best = _load(folder / "checkpoint", model, optimizer, identity)
    steps_of = {"pretrain": training.steps, "finetune": training.finetune_steps}
    taken = 0
    for stage in STAGES[STAGES.index(state.stage) :]:
        if stage != state.stage:
            model.load_state_dict(best)
            optimizer = accelerator.prepare(_optimizer(model, settings))
            state.stage, state.step, state.stale = stage, 0, 0
        steps = steps_of[stage]
        if stage == "finetune" and steps:
            batches.mined = _hard_negatives(folder / "hard_negatives.npy", batches, model, fresh=state.step == 0)
        every = max(1, round(steps / max(1, training.evaluations)))
        bar = progress(
            description=stage, total=steps, unit="step", disable=on_step is not None or not accelerator.is_main_process
        )
        bar.update(state.step)
        clock = time.perf_counter()
        while state.step < steps:
            if stage == "pretrain" and state.step == 0 and not state.curves:
                state.best = _record(
                    state, stage, 0, {"validation Recall@100": validation_recall(model, catalog, settings)}
                )
            row = _step(wrapped, model, optimizer, accelerator, batches, settings, stage, state.step, steps, seed)
            state.step += 1
            taken += 1
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            row["triples per second"] = training.batch_size * accelerator.num_processes / seconds
            if state.step % every == 0 or state.step == steps:
                recall = validation_recall(model, catalog, settings)
                row["validation Recall@100"] = recall
                state.stale = 0 if recall > state.best else state.stale + 1
                if not recall <= state.best:  # also where there is nothing to validate on (NaN): the last model counts
                    state.best, best = recall, _weights(model)
                clock = time.perf_counter()
            _record(state, stage, state.step, row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", triples=f"{row['triples per second']:.0f}/s", refresh=False)
            bar.update()
            if on_step is not None:
                on_step(stage, state.step, steps)
            if state.step % training.checkpoint_every == 0 and accelerator.is_main_process:
                _save(folder / "checkpoint", model, optimizer, state, best, identity)
            if stop_after is not None and taken >= stop_after:
                return model
            if training.patience and state.stale >= training.patience:
                break
        bar.close()
    model.load_state_dict(best)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(state.curves).to_parquet(folder / "curves.parquet", index=False)
    return model


def _step(wrapped, model, optimizer, accelerator, batches, settings, stage, step, steps, seed) -> dict[str, float]:
    """One optimiser step; returns what the curves show of it."""
    training, weights = settings.training, settings.objectives
    if stage == "finetune":
        weights = type(weights)(
            **{
                name: getattr(weights, name)
                if name in ("query_product", "distillation", "margin", "popularity_correction")
                else 0
                for name in weights.__dataclass_fields__
            }
        )
    torch.manual_seed(
        int(np.random.SeedSequence([seed, STAGES.index(stage), step, accelerator.process_index]).generate_state(1)[0])
    )
    wrapped.train()
    batch = batches(stage, step)
    inputs, pairs = ({name: tensor.to(accelerator.device) for name, tensor in part.items()} for part in batch)
    rate = learning_rate(step, steps, settings) / (5 if stage == "finetune" else 1)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with accelerator.autocast():
        features = gather(wrapped(inputs), accelerator.num_processes)
        done = step / max(1, steps) if stage == "pretrain" else 1.0
        terms = objectives(features, pairs, weights, settings.keywords, fusion=settings.model.fusion, progress=done)
        loss = sum(getattr(weights, name) * term for name, term in terms.items())
    if not torch.isfinite(loss):
        bad = [name for name, term in terms.items() if not torch.isfinite(term)]
        raise UserError(
            f"The loss is not finite at {stage} step {step + 1} ({', '.join(bad)}). "
            "Lower training.learning_rate or training.clip, or set training.precision to fp32; the last checkpoint is kept."
        )
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), training.clip)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, math.log(100.0))
    off = ~torch.eye(len(pairs["positives"]), dtype=torch.bool, device=accelerator.device)
    return {
        "loss": loss.item(),
        **{name: term.item() for name, term in terms.items()},
        "learning rate": rate,
        "gradient norm": float(norm),
        "logit scale": features["scale"].item(),
        "masked pairs": (~pairs["negatives"] & off).sum().item() / off.sum().item(),
        "image weight": features["w"][:, 1].mean().item(),
    }


def gather(features: dict[str, Tensor], world: int) -> dict[str, Tensor]:
    """Rows of all processes for the features that losses contrast, with gradients to the process that they came from."""
    if world == 1:
        return features
    return {
        name: torch.cat(torch.distributed.nn.all_gather(tensor)) if name in GATHERED else tensor
        for name, tensor in features.items()
    }


def _hard_negatives(file: Path, batches: Batches, model: MakeModel, *, fresh: bool) -> np.ndarray:
    """Mined once when fine-tuning begins and kept, so that a resumed run goes on with the same ones."""
    if fresh or not file.is_file():
        mined = batches.mine(model)
        with atomic_file(file) as draft:
            np.save(draft, mined)
    return np.load(file)


def _optimizer(model: MakeModel, settings: Settings) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]  # biases, norms and the logit scale: no weight decay
    groups = [
        {"params": decayed, "weight_decay": settings.training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.training.learning_rate)


def _record(state: _State, stage: str, step: int, row: dict[str, float]) -> float:
    state.curves.append({"stage": stage, "step": step, **row})
    return row.get("validation Recall@100", math.nan)


def _weights(model: MakeModel) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def _save(folder: Path, model: MakeModel, optimizer, state: _State, best: dict[str, Tensor], identity: str) -> None:
    """Weights, optimiser moments and the state, as safetensors and JSON: no pickle is ever read."""
    moments = {
        f"{index}.{name}": torch.as_tensor(value).cpu().contiguous()
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    with atomic_folder(folder) as draft:
        safetensors.torch.save_file(_weights(model), draft / "model.safetensors")
        safetensors.torch.save_file(best, draft / "best.safetensors")
        safetensors.torch.save_file(moments, draft / "optimizer.safetensors")
        (draft / "state.json").write_text(json.dumps({**vars(state), "identity": identity}))


def _load(folder: Path, model: MakeModel, optimizer, identity: str) -> tuple[_State, dict[str, Tensor]]:
    held = json.loads((folder / "state.json").read_text())
    if held.pop("identity") != identity:
        raise UserError(
            f"{folder} is a checkpoint of other settings, seed or catalogue. Use another folder, or delete it to start anew."
        )
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    tree = optimizer.state_dict()
    tree["state"] = {}
    for key, value in safetensors.torch.load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".")
        tree["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(tree)
    return _State(**held), safetensors.torch.load_file(folder / "best.safetensors")
