"""An arm: one variant of one study with one seed, trained, indexed and scored in a process of its own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from makelib.data.catalog import Catalog
from makelib.model.make import MakeModel
from makelib.model.training import train
from makelib.ranks import decided, place
from makelib.runtime import SCORING_CODE, atomic_file, code_version, fingerprint, set_threads
from makelib.search.retriever import Retriever, encode_catalogue
from makelib.settings import Settings, from_dict, to_dict, write_yaml
from makelib.study.metrics import evaluate

#: what an arm notes of its steps while it trains, for whoever looks on; a line of JSON each
LIVE = "live.jsonl"


@dataclass(frozen=True)
class Arm:
    """One variant of one study with one seed."""

    study: str
    variant: str
    seed: int
    settings: Settings
    folder: Path

    @property
    def label(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Trained, and scored as the settings have it."""
        note = self.folder / "arm.json"
        return note.is_file() and json.loads(note.read_text()).get("scoring") == scoring_key(self.settings)


def scoring_key(settings: Settings) -> str:
    """Fingerprint of what decides the scores of a trained model: index, test queries, cutoffs, and their code."""
    judged = (settings.evaluation.test_queries, settings.evaluation.cutoffs)
    return fingerprint(to_dict(settings)["index"], judged, code_version(SCORING_CODE))


def queries_of(catalog: Catalog, settings: Settings, split: str = "test") -> np.ndarray:
    """Rows of the queries of a split that are judged: all, or a fixed random choice of `evaluation.<split>_queries`."""
    rows = catalog.query_rows(split)
    wanted = getattr(settings.evaluation, f"{split}_queries")
    return np.sort(np.random.default_rng(0).permutation(rows)[:wanted])


def run_arm(
    label: str,
    tree: dict[str, Any],
    catalogue: str,
    seed: int,
    folder: str,
    on_step: Callable[[int], None] = lambda taken: None,
) -> None:
    """Train, index and judge one arm in this process; `arm.json`, written last, says that it is done. One that was trained
    already is only indexed and judged again. `on_step` is told after each step how many were taken."""
    began, settings, catalog, target = time.time(), from_dict(tree), Catalog.open(catalogue), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write_yaml(settings, target / "settings.yaml")
    if (target / "arm.json").is_file():
        note = json.loads((target / "arm.json").read_text())
        retriever = Retriever.open(target, catalog).indexed(settings.index)
    else:
        model = _train(catalog, settings, seed, target, on_step)
        vectors = encode_catalogue(model, catalog, target)
        if place()[0] == 0:
            retriever = Retriever.build(label, model, catalog, settings.index, vectors=vectors)
            note = {
                "label": label,
                "seed": seed,
                "seconds": time.time() - began,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "megaflops_per_product": product_flops(model) / 1e6,
            }
    if place()[0] == 0:
        _judge(retriever, settings, target)
        with atomic_file(target / "arm.json") as draft:
            draft.write_text(json.dumps({**note, "scoring": scoring_key(settings)}, indent=2), encoding="utf-8")
        for left in (target / "checkpoint", *target.glob(".encoding-*")):
            shutil.rmtree(left, ignore_errors=True)
    decided(None)  # the other processes wait until the arm is done


def _train(catalog: Catalog, settings: Settings, seed: int, target: Path, watch: Callable[[int], None]) -> MakeModel:
    """The trained model; its steps are noted for whoever looks on."""
    before = {"pretrain": 0, "finetune": settings.training.steps}

    noted = 0
    (target / LIVE).unlink(missing_ok=True)

    def on_step(stage: str, step: int, curves: list[dict[str, Any]]) -> None:
        nonlocal noted
        watch(before[stage] + step)
        if place()[0] > 0:
            return
        if step % 5 == 0 or step == 1 or len(curves) > noted:
            (target / "steps").write_text(str(before[stage] + step))
        with (target / LIVE).open("a", encoding="utf-8") as live:
            for row in curves[noted:]:
                line = {"step": before[row["stage"]] + row["step"]}
                line |= {name: row[name] for name in ("loss", "validation Recall@100") if name in row}
                print(json.dumps(line), file=live)
        noted = len(curves)

    return train(catalog, settings, seed, target, on_step=on_step)


def _judge(retriever: Retriever, settings: Settings, target: Path) -> None:
    """Keep an arm's model and index, its hits and their scores."""
    catalog, model = retriever.catalog, retriever.model
    retriever.save(target)
    rows = queries_of(catalog, settings)
    vectors = model.encode_queries(catalog.queries["query"].iloc[rows].tolist())
    found, scores = retriever.index.search(vectors, max(settings.evaluation.cutoffs))
    np.savez(target / "hits.npz", queries=rows, rows=found, scores=scores)
    evaluate(catalog, rows, found, settings.evaluation).to_parquet(target / "per_query.parquet", index=False)


def product_flops(model: MakeModel) -> float:
    """Floating-point operations to encode one product with a title of 28 tokens, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    L, size = 28, model.config.image_size
    inputs = (
        torch.zeros(1, L, dtype=torch.long),
        torch.ones(1, L, dtype=torch.long),
        torch.zeros(1, size, size, 3, dtype=torch.uint8),
        torch.ones(1, 2),
        torch.zeros(1, dtype=torch.long),
    )
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.product(*(x.to(model.device) for x in inputs))
    return float(counter.get_total_flops())


@contextlib.contextmanager
def worker_pool(workers: int, threads: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Processes for `run_arm`, each with its share of the threads. Whoever leaves by an exception ends them at once, and what
    waits for them never begins."""
    others = set(multiprocessing.active_children())
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=start_worker, initargs=(threads,)
    )
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise


@contextlib.contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that begin here never hear Ctrl-C: a terminal and Jupyter send it to the whole family, and one shall answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(threads: int) -> None:
    """Ends with whoever began it, however that went: a kernel that is restarted or killed cannot tell its workers to stop."""
    os.environ["MAKELIB_HEADLESS"] = "1"
    set_threads(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def steps_of(folder: Path) -> int:
    try:
        return int((folder / "steps").read_text() or 0)
    except (OSError, ValueError):
        return 0
