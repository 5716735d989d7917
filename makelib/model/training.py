"""The training loop: batches, optimiser, checkpoints, resume, progress. Pre-training, then (optionally) fine-tuning.

Every random choice of a step is drawn from (seed, stage, step), so a run that was killed and resumed gives the same weights as
one that was not, and two processes with half a batch each see what one process with the whole batch sees.
Knows nothing of indexes or test queries.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import torch.distributed.nn
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from makelib.data.catalog import Catalog
from makelib.model.batches import STAGES, Batches, tokenizer_for
from makelib.model.checkpoint import TrainingState, copied_weights, load_checkpoint, save_checkpoint
from makelib.model.losses import objectives
from makelib.model.make import MakeModel
from makelib.model.optim import learning_rate, make_optimizer
from makelib.model.warmup import warm_up_images
from makelib.runtime import UserError, atomic_file, fingerprint, progress
from makelib.settings import Settings, to_dict

#: features that every process needs of every other's rows
GATHERED = ("q", "p", "u_t", "u_v", "w", "q_plus", "p_hard")


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
    optimizer = make_optimizer(model, settings)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    identity = fingerprint(to_dict(settings), seed, catalog.fingerprint)
    state, best = TrainingState(curves=[]), copied_weights(model)
    if (folder / "checkpoint").is_dir():
        state, best = load_checkpoint(folder / "checkpoint", model, optimizer, identity)
    steps_of = {"pretrain": training.steps, "finetune": training.finetune_steps}
    taken = 0
    for stage in STAGES[STAGES.index(state.stage) :]:
        if stage != state.stage:
            model.load_state_dict(best)
            optimizer = accelerator.prepare(make_optimizer(model, settings))
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
                    state.best, best = recall, copied_weights(model)
                clock = time.perf_counter()
            _record(state, stage, state.step, row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", triples=f"{row['triples per second']:.0f}/s", refresh=False)
            bar.update()
            if on_step is not None:
                on_step(stage, state.step, steps)
            if state.step % training.checkpoint_every == 0 and accelerator.is_main_process:
                save_checkpoint(folder / "checkpoint", model, optimizer, state, best, identity)
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


def _record(state: TrainingState, stage: str, step: int, row: dict[str, float]) -> float:
    state.curves.append({"stage": stage, "step": step, **row})
    return row.get("validation Recall@100", math.nan)
