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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from makelib import ranks
from makelib.data.catalog import Catalog
from makelib.data.tokens import tokenizer_for
from makelib.model import caching
from makelib.model.batches import SHARD, STAGES, Batch, Batches, encoded
from makelib.model.checkpoint import TrainingState, copied_weights, load_checkpoint, save_checkpoint
from makelib.model.frozen import pictures
from makelib.model.losses import finetuning, full, objectives, total
from makelib.model.make import MakeModel
from makelib.model.optim import make_optimizer, schedule
from makelib.model.warmup import warm_up_images, warms_up
from makelib.ranks import broadcast_weights, decided, gather, gather_rows, lost_peers, place, share
from makelib.runtime import UserError, atomic_file, code_version, fingerprint, progress
from makelib.settings import Objectives, Settings, to_dict

#: features that every process needs of every other's rows
GATHERED = ("q", "p", "u_t", "u_v", "w", "q_plus", "p_hard", "title_image_logits", "query_product_logits")
#: what is called after each step with the stage, the step and the curves so far
Watcher = Callable[[str, int, list[dict]], None]
#: steps between two looks at the numbers; in between the host only sends work ahead
LOG = 10


def validation_recall(model: MakeModel, catalog: Catalog, settings: Settings) -> float:
    """Recall@100 of validation queries against the whole catalogue, mean over queries; what early stopping looks at."""
    rows = catalog.query_rows("validation")
    rows = np.random.default_rng(0).permutation(rows)[: settings.evaluation.validation_queries]
    if len(rows) == 0:
        return float("nan")
    parts = np.array_split(np.arange(len(rows)), -(-len(rows) // 32))
    texts = catalog.queries["query"].iloc[rows].tolist()
    queries = [torch.from_numpy(model.encode_queries([texts[place] for place in part])) for part in parts]
    counts, own = np.zeros(len(rows)), share(len(catalog))
    best, full = torch.full((len(rows), 0), -torch.inf), torch.zeros((len(rows), 0), dtype=torch.bool)
    for start in range(own.start, own.stop, SHARD):  # neither all products nor all relevance at once
        shard = slice(start, min(start + SHARD, own.stop))
        products = torch.from_numpy(encoded(model, catalog, shard).embedding)
        scores, relevant = [], []
        for part, asked in zip(parts, queries, strict=True):
            meets = catalog.relevance(rows[part], np.arange(shard.start, shard.stop)) >= 1.0
            counts[part] += meets.sum(axis=1)
            top = (asked @ products.T).topk(min(100, len(products)), dim=1)
            scores.append(top.values)
            relevant.append(torch.from_numpy(meets).gather(1, top.indices))
        best, full = _merged(torch.cat([best, torch.cat(scores)], dim=1), torch.cat([full, torch.cat(relevant)], dim=1))
    best, full = (torch.from_numpy(gather_rows(each.numpy().T.copy()).T.copy()) for each in (best, full))
    found = _merged(best, full)[1].sum(dim=1).numpy()
    counts = gather_rows(counts[None]).sum(axis=0)
    return decided(float((found / counts)[counts > 0].mean()) if counts.any() else float("nan"))


def _merged(scores: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """The 100 best of each row (Q, n), and whether they are relevant."""
    top = scores.topk(min(100, scores.shape[1]), dim=1)
    return top.values, full.gather(1, top.indices)


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
    on_step: Watcher | None = None,
    stop_after: int | None = None,
) -> MakeModel:
    """Train a model from the first step, or from the checkpoint that `folder` holds, to the end; returns the best one.

    Best is by validation Recall@100, measured at step 0 and `training.evaluations` times. Writes `folder/curves.parquet` and,
    every `checkpoint_every` steps, `folder/checkpoint`. `on_step(stage, step, curves)` is called after each step with
    the curves so far; `stop_after` ends the process's part after so many steps, as a kill would (for tests of resuming).

    Raises `UserError` on a loss that is not finite, a checkpoint of other settings, or another process that vanished.
    """
    with lost_peers():
        run = _begin(catalog, settings, seed, Path(folder))
        return _train(run, on_step, stop_after)


@dataclass
class Run:
    """A training under way: what its steps work on, how far it is, and the best weights so far."""

    catalog: Catalog
    settings: Settings
    seed: int
    folder: Path
    key: str
    accelerator: Accelerator
    batches: Batches
    model: MakeModel
    wrapped: nn.Module  # the model as `accelerator` trains it
    optimizer: torch.optim.Optimizer
    state: TrainingState
    best: dict[str, Tensor]

    @property
    def exhausted(self) -> bool:
        """Whether so many validations brought nothing that training ends."""
        return 0 < self.settings.training.patience <= self.state.stale

    def measure(self) -> float:
        """Validate, and keep the weights where they are the best so far."""
        recall = validation_recall(self.model, self.catalog, self.settings)
        self.state.stale = 0 if recall > self.state.best else self.state.stale + 1
        if not recall <= self.state.best:  # also where there is nothing to validate on (NaN): the last model counts
            self.state.best, self.best = recall, copied_weights(self.model)
        return recall

    def back_to_best(self) -> None:
        self.model.load_state_dict(self.best)
        broadcast_weights(self.model)


def _begin(catalog: Catalog, settings: Settings, seed: int, folder: Path) -> Run:
    """A training before its first step, or as its checkpoint has it."""
    accelerator = ranks.accelerator(settings.training.precision)
    torch.manual_seed(seed)
    with accelerator.main_process_first():  # who comes first fills the catalogue's cache
        model = untrained(catalog, settings)
    ranks.join_batch_norms(model)
    if settings.training.chunk:
        caching.check(model)
    with accelerator.main_process_first():
        shown, _, further = pictures(catalog, model)
        batches = Batches(catalog, model.tokenizer, settings, seed, (shown, further))
    optimizer = make_optimizer(model, settings)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    state, best, key = TrainingState(curves=[]), {}, training_key(settings, seed, catalog)
    if decided((folder / "checkpoint").is_dir()):
        state, best = load_checkpoint(folder / "checkpoint", model, optimizer, accelerator.scaler, key)
    return Run(catalog, settings, seed, folder, key, accelerator, batches, model, wrapped, optimizer, state, best)


def untrained(catalog: Catalog, settings: Settings) -> MakeModel:
    """A model before its first step. Its image encoder has learned to see, once for all arms of a catalogue."""
    tokenizer, categories = tokenizer_for(catalog, settings), int(catalog.category_numbers.max(initial=0))
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer, categories)
    if warms_up(settings):
        model.image_encoder.load_state_dict(safetensors.torch.load_file(warm_up_images(catalog, settings)))
    return model


def _train(run: Run, on_step: Watcher | None, stop_after: int | None) -> MakeModel:
    """Both stages, from where the run is; the best model."""
    state, training, taken = run.state, run.settings.training, 0
    if not state.curves:
        state.curves.append({"stage": "pretrain", "step": 0, "validation Recall@100": run.measure()})
        state.stale = 0
    for stage, steps in zip(STAGES, (training.steps, training.finetune_steps), strict=True):
        if STAGES.index(stage) < STAGES.index(state.stage):
            continue
        if stage != state.stage:
            run.back_to_best()
            run.optimizer.state.clear()  # not a second optimizer: accelerate would unscale the gradients of both
            state.stage, state.step, state.stale = stage, 0, 0
        if stage == "finetune" and steps:
            file = run.folder / "hard_negatives.npy"
            run.batches.mined = _hard_negatives(file, run.batches, run.model, fresh=state.step == 0)
        for _ in _steps(run, steps, quiet=on_step is not None):
            taken += 1
            if on_step is not None:
                on_step(stage, state.step, state.curves)
            if state.step % training.checkpoint_every == 0 and run.accelerator.is_main_process:
                scaler = run.accelerator.scaler
                save_checkpoint(run.folder / "checkpoint", run.model, run.optimizer, scaler, state, run.best, run.key)
            if stop_after is not None and taken >= stop_after:
                return run.model
    run.back_to_best()
    if run.accelerator.is_main_process:
        run.folder.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(state.curves).to_parquet(run.folder / "curves.parquet", index=False)
    return run.model


def _steps(run: Run, steps: int, quiet: bool) -> Iterator[None]:
    """Learn from batch after batch to the end of the stage; yields after each step, when the curves are up to date."""
    state, training = run.state, run.settings.training
    every = max(1, round(steps / max(1, training.evaluations)))
    quiet = quiet or not run.accelerator.is_main_process
    pending, waited, clock = [], 0.0, time.perf_counter()
    left = clock
    following = prepared(run.batches, state.stage, range(state.step, state.step if run.exhausted else steps))
    with progress(description=state.stage, total=steps, unit="step", disable=quiet) as bar:
        bar.update(state.step)
        for batch in following:
            waited += time.perf_counter() - left
            pending.append(_step(run, batch, steps))
            state.step += 1
            measured = state.step % every == 0 or state.step == steps
            if measured or state.step % training.checkpoint_every == 0 or state.step % LOG == 0:
                read = _read(pending, run)
                seconds = time.perf_counter() - clock
                speed = training.batch_size * len(read) / seconds
                state.curves += [row | {"triples per second": speed, "waited": waited / seconds} for row in read]
                bar.set_postfix(loss=f"{read[-1]['loss']:.3f}", triples=f"{speed:.0f}/s", refresh=False)
                pending, waited, clock = [], 0.0, time.perf_counter()
            if measured:
                state.curves[-1]["validation Recall@100"] = run.measure()
                clock = time.perf_counter()
            bar.update()
            yield
            if run.exhausted:
                return
            left = time.perf_counter()


def prepared(batches: Batches, stage: str, steps: range) -> Iterator[Batch]:
    """The batches of `steps`, in order; a thread makes the next one while this one is learned from."""
    with ThreadPoolExecutor(1) as worker:
        following = deque(worker.submit(batches, stage, step) for step in steps[:1])
        for step in steps:
            following.extend(worker.submit(batches, stage, later) for later in steps[step - steps.start + 1 :][:1])
            yield following.popleft().result()


def _step(run: Run, batch: Batch, steps: int) -> dict[str, Tensor]:
    """One optimiser step of `steps`; returns what the curves show of it, still on the device: nothing here waits for it."""
    settings, training, accelerator = run.settings, run.settings.training, run.accelerator
    stage, step = run.state.stage, run.state.step
    weights = settings.objectives if stage == "pretrain" else finetuning(settings.objectives)
    dropout = np.random.SeedSequence(run.seed, spawn_key=(STAGES.index(stage), step, accelerator.process_index))
    run.wrapped.train()
    batch = Batch(
        *({name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in part.items()} for part in batch)
    )
    share = schedule(step, steps, training.warmup) / (5 if stage == "finetune" else 1)
    for group in run.optimizer.param_groups:
        group["lr"] = share * group["peak"]
    done = step / max(1, steps) if stage == "pretrain" else 1.0
    run.optimizer.zero_grad()
    backward = caching.backward if training.chunk else whole
    terms, features, masked = backward(run, batch, weights, done, dropout)
    norm = accelerator.clip_grad_norm_(run.wrapped.parameters(), training.clip)
    run.optimizer.step()
    with torch.no_grad():
        run.model.logit_scale.clamp_(0.0, math.log(100.0))
    B = len(batch.pairs["present"])
    row = {
        "loss": total(terms, weights),
        **terms,
        "learning rate": torch.tensor(share * training.learning_rate),
        "gradient norm": norm,
        "logit scale": features["scale"],
        "masked pairs": (masked - B) / (B * B - B),
        "image weight": features["w"][:, 1].mean(),
    }
    return {name: tensor.detach().float() for name, tensor in row.items()}


def whole(
    run: Run, batch: Batch, weights: Objectives, done: float, dropout: np.random.SeedSequence
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The objectives of a batch by name, its features and how many pairs are no negatives; the weights get their gradients."""
    settings = run.settings
    torch.manual_seed(int(dropout.generate_state(1)[0]))
    with run.accelerator.autocast():
        features = gathered(run.wrapped(batch.inputs, weights), GATHERED)
    # outside of autocast and in float32: logits in half precision are off by a tenth where the scale is 100
    features = {name: full(tensor) for name, tensor in features.items()}
    pairs = gathered(batch.pairs, ("positives", "negatives"))
    terms = objectives(features, pairs, weights, settings.keywords, fusion=settings.model.fusion, progress=done)
    run.accelerator.backward(total(terms, weights))
    return terms, features, (~pairs["negatives"]).sum()


def _read(rows: list[dict[str, Tensor]], run: Run) -> list[dict]:
    """The last rows of the curves as numbers, means over processes: the one place where the host waits for the device.

    Raises `UserError` at the first loss that is not finite.
    """
    values = torch.stack([tensor.to(run.accelerator.device) for row in rows for tensor in row.values()])
    numbers = iter(run.accelerator.reduce(values, "mean").tolist())
    stage, step, read = run.state.stage, run.state.step, []
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
