"""The training loop: batches, optimiser, checkpoints, resume, progress. Pre-training, then (optionally) fine-tuning.

Every random choice of a step is drawn from (seed, stage, step) for the rows of all processes, so a run that was killed and resumed
gives the same weights as one that was not, and two processes with half a batch each do what one with the whole batch does
(with `model.dropout` its masks differ). What is decided, the main process decides.
Knows nothing of indexes or test queries.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from makelib import ranks
from makelib.data.catalog import Catalog
from makelib.model.batches import STAGES, Batch, Batches, encoded, tokenizer_for
from makelib.model.checkpoint import TrainingState, copied_weights, load_checkpoint, save_checkpoint
from makelib.model.frozen import pictures
from makelib.model.losses import finetuning, objectives
from makelib.model.make import MakeModel
from makelib.model.optim import make_optimizer, schedule
from makelib.model.warmup import warm_up_images, warms_up
from makelib.ranks import broadcast_weights, decided, gather, gather_rows, lost_peers, place, share
from makelib.runtime import UserError, atomic_file, code_version, fingerprint, progress
from makelib.settings import Objectives, Settings, to_dict

#: features and masks that every process needs of every other's rows
GATHERED = ("q", "p", "u_t", "u_v", "w", "q_plus", "p_hard", "title_image_logits", "query_product_logits")
GATHERED_PAIRS = ("positives", "negatives")
#: steps between two looks at the numbers; in between the host only sends work ahead
LOG = 10


def validation_recall(model: MakeModel, catalog: Catalog, settings: Settings) -> float:
    """Recall@100 of validation queries against the whole catalogue, mean over queries; what early stopping looks at."""
    rows = catalog.query_rows("validation")
    rows = np.random.default_rng(0).permutation(rows)[: settings.evaluation.validation_queries]
    if len(rows) == 0:
        return float("nan")
    products = torch.from_numpy(gather_rows(encoded(model, catalog, share(len(catalog))).embedding))
    found, counts = [], []
    for part in np.array_split(rows, -(-len(rows) // 32)):  # few rows of relevance at a time
        queries = torch.from_numpy(model.encode_queries(catalog.queries["query"].iloc[part].tolist()))
        best = (queries @ products.T).topk(min(100, len(catalog)), dim=1).indices.numpy()
        full = catalog.relevance(part) >= 1.0
        counts.append(full.sum(axis=1))
        found.append(np.take_along_axis(full, best, axis=1).sum(axis=1))
    found, counts = np.concatenate(found), np.concatenate(counts)
    return decided(float((found / counts)[counts > 0].mean()) if counts.any() else float("nan"))


def training_key(settings: Settings, seed: int, catalog: Catalog) -> str:
    """Identifies all that a trained model depends on, makelib's own code included. It names an arm's folder, and a checkpoint
    of another key is refused; how the model is judged, how many seeds there are and which arms run beside is no part of it."""
    tree = to_dict(settings)
    parts = {name: tree[name] for name in ("text", "model", "keywords", "objectives", "training")}
    return fingerprint(parts, settings.evaluation.validation_queries, seed, catalog.fingerprint, code_version())


def train(
    catalog: Catalog,
    settings: Settings,
    seed: int,
    folder: Path,
    *,
    on_step: Callable[[str, int, list[dict[str, float]]], None] | None = None,
    stop_after: int | None = None,
) -> MakeModel:
    """Train a model from the first step, or from the checkpoint that `folder` holds, to the end; returns the best one.

    Best is by validation Recall@100, measured at step 0 and `training.evaluations` times. Writes `folder/curves.parquet` and,
    every `checkpoint_every` steps, `folder/checkpoint`. `on_step(stage, step, curves)` is called after each step with
    the curves so far; `stop_after` ends the process's part after so many steps, as a kill would (for tests of resuming).

    Raises `UserError` on a loss that is not finite, a checkpoint of other settings, or another process that vanished.
    """
    with lost_peers():
        return _train(catalog, settings, seed, Path(folder), on_step, stop_after)


def _train(catalog, settings, seed, folder, on_step, stop_after) -> MakeModel:
    training = settings.training
    accelerator = ranks.accelerator(training.precision)
    torch.manual_seed(seed)
    tokenizer = tokenizer_for(catalog, settings)
    categories = int(catalog.category_numbers.max(initial=0))
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer, categories)
    if warms_up(settings):
        with accelerator.main_process_first():
            seeing = warm_up_images(catalog, settings)
        model.image_encoder.load_state_dict(safetensors.torch.load_file(seeing))
    ranks.join_batch_norms(model)
    with accelerator.main_process_first():  # who comes first fills the catalogue's cache
        shown, _, further = pictures(catalog, model)
        batches = Batches(catalog, tokenizer, settings, seed, (shown, further))
    optimizer = make_optimizer(model, settings)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    identity = training_key(settings, seed, catalog)
    state, best = TrainingState(curves=[]), copied_weights(model)
    if decided((folder / "checkpoint").is_dir()):
        state, best = load_checkpoint(folder / "checkpoint", model, optimizer, accelerator.scaler, identity)
    steps_of = {"pretrain": training.steps, "finetune": training.finetune_steps}
    taken = 0
    for stage in STAGES[STAGES.index(state.stage) :]:
        if stage != state.stage:
            model.load_state_dict(best)
            broadcast_weights(model)
            optimizer.state.clear()  # not a second optimizer: accelerate would unscale the gradients of both
            state.stage, state.step, state.stale = stage, 0, 0
        steps = steps_of[stage]
        if stage == "finetune" and steps:
            batches.mined = _hard_negatives(folder / "hard_negatives.npy", batches, model, fresh=state.step == 0)
        if stage == "pretrain" and not state.curves:
            state.best = validation_recall(model, catalog, settings)
            state.curves.append({"stage": stage, "step": 0, "validation Recall@100": state.best})
        every = max(1, round(steps / max(1, training.evaluations)))
        bar = progress(
            description=stage, total=steps, unit="step", disable=on_step is not None or not accelerator.is_main_process
        )
        bar.update(state.step)
        pending, clock, waited = [], time.perf_counter(), 0.0
        left = clock
        stopped = training.patience and state.stale >= training.patience  # before a checkpoint that is resumed now
        for batch in prepared(batches, stage, range(state.step, state.step if stopped else steps)):
            waited += time.perf_counter() - left
            row = _step(wrapped, model, optimizer, accelerator, batch, settings, stage, state.step, steps, seed)
            pending.append(row)
            state.step += 1
            taken += 1
            measured = state.step % every == 0 or state.step == steps
            saved = state.step % training.checkpoint_every == 0
            if measured or saved or state.step % LOG == 0:
                read = _read(pending, accelerator, stage, state.step)
                seconds = time.perf_counter() - clock
                speed = training.batch_size * len(read) / seconds
                state.curves += [row | {"triples per second": speed, "waited": waited / seconds} for row in read]
                bar.set_postfix(loss=f"{read[-1]['loss']:.3f}", triples=f"{speed:.0f}/s", refresh=False)
                pending, clock, waited = [], time.perf_counter(), 0.0
            if measured:
                recall = validation_recall(model, catalog, settings)
                state.curves[-1]["validation Recall@100"] = recall
                state.stale = 0 if recall > state.best else state.stale + 1
                if not recall <= state.best:  # also where there is nothing to validate on (NaN): the last model counts
                    state.best, best = recall, copied_weights(model)
                clock = time.perf_counter()
            bar.update()
            if on_step is not None:
                on_step(stage, state.step, state.curves)
            if saved and accelerator.is_main_process:
                save_checkpoint(folder / "checkpoint", model, optimizer, accelerator.scaler, state, best, identity)
            if stop_after is not None and taken >= stop_after:
                return model
            if training.patience and state.stale >= training.patience:
                break
            left = time.perf_counter()
        bar.close()
    model.load_state_dict(best)
    broadcast_weights(model)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(state.curves).to_parquet(folder / "curves.parquet", index=False)
    return model


def prepared(batches: Batches, stage: str, steps: range) -> Iterator[Batch]:
    """The batches of `steps`, in order; a thread makes the next one while this one is learned from."""
    with ThreadPoolExecutor(1) as worker:
        following = deque(worker.submit(batches, stage, step) for step in steps[:1])
        for step in steps:
            following.extend(worker.submit(batches, stage, later) for later in steps[step - steps.start + 1 :][:1])
            yield following.popleft().result()


def _step(wrapped, model, optimizer, accelerator, batch, settings, stage, step, steps, seed) -> dict[str, Tensor]:
    """One optimiser step; returns what the curves show of it, still on the device: nothing here waits for it."""
    training = settings.training
    weights = settings.objectives if stage == "pretrain" else finetuning(settings.objectives)
    dropout = np.random.SeedSequence(seed, spawn_key=(STAGES.index(stage), step, accelerator.process_index))
    torch.manual_seed(int(dropout.generate_state(1)[0]))
    wrapped.train()
    inputs, pairs = (
        {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in part.items()} for part in batch
    )
    share = schedule(step, steps, training.warmup) / (5 if stage == "finetune" else 1)
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak"]
    with accelerator.autocast():
        features = gathered(wrapped(inputs, weights), GATHERED)
    # outside of autocast and in float32: logits in half precision are off by a tenth where the scale is 100
    features = {name: tensor.float() for name, tensor in features.items()}
    pairs = gathered(pairs, GATHERED_PAIRS)
    done = step / max(1, steps) if stage == "pretrain" else 1.0
    terms = objectives(features, pairs, weights, settings.keywords, fusion=settings.model.fusion, progress=done)
    loss = sum(getattr(weights, name) * term for name, term in terms.items())
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), training.clip)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0.0, math.log(100.0))
    off = ~torch.eye(len(pairs["positives"]), dtype=torch.bool, device=accelerator.device)
    row = {
        "loss": loss,
        **terms,
        "learning rate": torch.tensor(share * training.learning_rate),
        "gradient norm": norm,
        "logit scale": features["scale"],
        "masked pairs": (~pairs["negatives"] & off).sum() / off.sum(),
        "image weight": features["w"][:, 1].mean(),
    }
    return {name: tensor.detach().float() for name, tensor in row.items()}


def _read(rows: list[dict[str, Tensor]], accelerator, stage: str, step: int) -> list[dict]:
    """Rows of the curves up to `step` as numbers, means over processes: the one place where the host waits for the device.

    Raises `UserError` at the first loss that is not finite.
    """
    values = torch.stack([tensor.to(accelerator.device) for row in rows for tensor in row.values()])
    numbers = iter(accelerator.reduce(values, "mean").tolist())
    read = []
    for at, row in enumerate(rows, step - len(rows) + 1):
        read.append({"stage": stage, "step": at, **{name: next(numbers) for name in row}})
        if not math.isfinite(read[-1]["loss"]):
            bad = [name for name in Objectives.__dataclass_fields__ if not math.isfinite(read[-1].get(name, 0))]
            raise UserError(
                f"The loss is not finite at {stage} step {at} ({', '.join(bad)}). "
                "Lower training.learning_rate or training.clip, or set training.precision to fp32; the last checkpoint is kept."
            )
    return read


def gathered(tensors: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """`tensors`, those called `names` with the rows of all processes."""
    return {name: gather(tensor) if name in names else tensor for name, tensor in tensors.items()}


def _hard_negatives(file: Path, batches: Batches, model: MakeModel, *, fresh: bool) -> np.ndarray:
    """Mined once when fine-tuning begins and kept, so that a resumed run goes on with the same ones."""
    mined = batches.mine(model) if decided(fresh or not file.is_file()) else None
    if mined is not None and place()[0] == 0:
        with atomic_file(file) as draft:
            np.save(draft, mined)
    return decided(np.load(file) if place()[0] == 0 else None)
