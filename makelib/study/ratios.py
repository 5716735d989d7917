"""What `make bench` measures against peers: this project's time or recall over another's, each ratio with its parts.

Peers are the extra `peers` (`open_clip_torch`) and faiss. Everything is warmed up outside of the clock; medians are reported.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import faiss
import numpy as np
import pandas as pd
import tokenizers
import torch
from torch.utils.flop_counter import FlopCounterMode

from makelib.data.catalog import Catalog
from makelib.data.tokens import tokenizer_for
from makelib.model.batches import Batches
from makelib.model.losses import objectives
from makelib.model.make import MakeModel
from makelib.model.training import LOG, train
from makelib.runtime import UserError, atomic_file, provenance, set_threads
from makelib.search.index import ProductIndex
from makelib.search.onnx import export_queries
from makelib.settings import Index, Settings

#: products of the search benchmark, and how many neighbours are asked for
PRODUCTS, DEPTH = 1_000_000, 100
SIZES = (10_000, 100_000, 1_000_000)
#: whose steps are timed, in so many rounds
RIVALS = {
    "adaptive": {"model.fusion": "adaptive"},
    "joint": {"model.fusion": "joint"},
    "make": {"model.fusion": "adaptive", "keywords.enrichment": True, "keywords.false_negatives": "rule"},
}
ROUNDS = 3


def write(folder: Path, name: str, result: dict[str, Any]) -> dict[str, float]:
    """`folder/<name>.json` with a flat object `ratios`, what they were made of, and the machine; returns the ratios."""
    with atomic_file(Path(folder) / f"{name}.json") as draft:
        draft.write_text(json.dumps({**result, "provenance": provenance()}, indent=2), encoding="utf-8")
    return result["ratios"]


def training(catalog: Catalog, settings: Settings, steps: int = 30) -> dict[str, Any]:
    """Steps of training, batch preparation included, at the settings' own batch and towers.

    `train_vs_open_clip`, texts read by one layer at least: rows a second over those of `open_clip`'s training step with text and
    image towers of the same kind and size (its pairs are title and image; ours are query, title and image with all objectives).
    `train_vs_ceiling`: floating-point operations a second over those of large matrix products on this machine.
    `adaptive_vs_joint_step`, `make_vs_joint_step` (with Keyword Enhancement): time of a step with the towers that are trained;
    `…_one_layer`: the same where texts are read by a layer, not as bags of words. `batch_preparation_share`: share of a step's
    wall time in which it waits for its batch.
    """
    _peer()  # before the first minute is spent
    settings = settings.replace(
        **{
            "training.steps": steps, "training.finetune_steps": 0, "training.evaluations": 1, "training.image_warmup": 0,
            "training.patience": 0,
        }
    )  # fmt: skip
    read = settings.replace(**{"model.text_layers": max(1, settings.model.text_layers)})
    rivals = {name: settings.replace(**changes) for name, changes in RIVALS.items()}
    rivals |= {f"{name}, one layer": read.replace(**changes) for name, changes in RIVALS.items()}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    peer = []
    for _ in range(ROUNDS):  # they take turns, so that what else the machine does meets all alike
        for name, own in rivals.items():
            with tempfile.TemporaryDirectory() as folder:
                train(catalog, own, 0, Path(folder), on_step=lambda *_: None)
                curves = pd.read_parquet(Path(folder) / "curves.parquet")
            curves = curves.iloc[1 + LOG :]  # without step 0 and those that warm up
            rounds[name].append((curves["triples per second"].median(), curves["waited"].median()))
        peer.append(settings.training.batch_size / _open_clip_step(read))
    size, peer = settings.training.batch_size, statistics.median(peer)
    speed = {name: float(statistics.median(speed for speed, _ in measured)) for name, measured in rounds.items()}
    waited = float(statistics.median(waited for _, waited in rounds["adaptive"]))
    ceiling, achieved = _ceiling(), _flops(catalog, read) * speed["adaptive, one layer"] / size
    return {
        "ratios": {
            "train_vs_open_clip": speed["adaptive, one layer"] / peer,
            "train_vs_ceiling": achieved / ceiling,
            "adaptive_vs_joint_step": speed["joint"] / speed["adaptive"],
            "make_vs_joint_step": speed["joint"] / speed["make"],
            "adaptive_vs_joint_step_one_layer": speed["joint, one layer"] / speed["adaptive, one layer"],
            "make_vs_joint_step_one_layer": speed["joint, one layer"] / speed["make, one layer"],
            "batch_preparation_share": waited,
        },
        "rows_per_second": {**speed, "open_clip": peer},
        "gigaflops": {"training": achieved / 1e9, "ceiling": ceiling / 1e9},
        "batch_size": size,
    }


def grown(embedding: np.ndarray, products: int) -> np.ndarray:
    """A trained model's own vectors, float32 (products, d), copied with a little noise, so that the cloud keeps its shape."""
    random, dim = np.random.default_rng(0), embedding.shape[1]
    vectors = np.resize(embedding, (products, dim)).astype(np.float32)
    for start in range(0, products, 100_000):
        part = vectors[start : start + 100_000]
        copied = np.arange(start, start + len(part)) >= len(embedding)
        part[copied] += random.normal(0, 0.3 / np.sqrt(dim), (int(copied.sum()), dim)).astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def search(embedding: np.ndarray, queries: np.ndarray, products: int = PRODUCTS) -> dict[str, Any]:
    """Search among `products` vectors, see `grown`, on one thread.

    `search_vs_faiss_1e6`: our exact search over plain faiss, the worse of one query and 64. `ann_*`: the kind `ivf` with
    parameters by rule, recall of the exact first 100 over all `queries`, and time of one query over exact.
    """
    vectors, dim = grown(embedding, products), embedding.shape[1]
    ids, marks = np.arange(products).astype(str), {"model_fingerprint": "bench", "catalogue_fingerprint": "bench"}
    plain = faiss.IndexFlatIP(dim)
    plain.add(vectors)
    exact = ProductIndex.build(vectors, ids, Index(kind="exact"), **marks)
    began = time.perf_counter()
    lists = ProductIndex.build(vectors, ids, Index(kind="ivf"), **marks)
    built = time.perf_counter() - began
    del vectors
    one, many = queries[:1], np.resize(queries, (64, dim))
    with one_thread():
        seconds = _alternated(
            {
                "faiss, 1": lambda: plain.search(one, DEPTH),
                "exact, 1": lambda: exact.search(one, DEPTH),
                "ivf, 1": lambda: lists.search(one, DEPTH),
                "faiss, 64": lambda: plain.search(many, DEPTH),
                "exact, 64": lambda: exact.search(many, DEPTH),
            }
        )
        each = []
        for query in queries:
            began = time.perf_counter()
            lists.search(query[None], DEPTH)
            each.append(time.perf_counter() - began)
    found, truth = lists.search(queries, DEPTH)[0], exact.search(queries, DEPTH)[0]
    recall = np.mean([len(np.intersect1d(a, b)) / DEPTH for a, b in zip(found, truth, strict=True)])
    return {
        "ratios": {
            "search_vs_faiss_1e6": max(seconds[f"exact, {n}"] / seconds[f"faiss, {n}"] for n in (1, 64)),
            "ann_recall_1e6": float(recall),
            "ann_time_vs_exact_1e6": seconds["ivf, 1"] / seconds["exact, 1"],
        },
        "seconds": seconds,
        "ivf_seconds_percentiles": {"50": float(np.percentile(each, 50)), "99": float(np.percentile(each, 99))},
        "products": products,
        "dim": dim,
        "index": lists.manifest["settings"],
        "build_seconds": built,
    }


def growth(embedding: np.ndarray, queries: np.ndarray, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """How building, searching and bytes grow with the number of products: exponents b of a · N^b fitted over `sizes`, see `grown`."""
    rows = []
    for products in sizes:
        vectors = grown(embedding, products)
        ids, marks = np.arange(products).astype(str), {"model_fingerprint": "bench", "catalogue_fingerprint": "bench"}
        truth = None
        for kind in ("exact", "ivf", "ivf-pq"):
            began = time.process_time()
            index = ProductIndex.build(vectors, ids, Index(kind=kind), **marks)
            built = time.process_time() - began
            with one_thread():
                seconds = _median(lambda index=index: index.search(queries[:1], DEPTH))
            found = index.search(queries, DEPTH)[0]
            truth = found if truth is None else truth
            recall = np.mean([len(np.intersect1d(a, b)) / DEPTH for a, b in zip(found, truth, strict=True)])
            row = {"kind": kind, "products": products, "build_seconds": built, "query_seconds": seconds}
            rows.append({**row, "recall": float(recall), "bytes_per_product": index.nbytes / products})
    table = pd.DataFrame(rows)
    fitted = {}
    for kind, group in table.groupby("kind", sort=False):
        for what in ("build_seconds", "query_seconds"):
            slope = np.polyfit(np.log(group["products"]), np.log(group[what]), 1)[0]
            fitted[f"{kind}_{what.removesuffix('_seconds')}_exponent"] = float(slope)
    return {"ratios": fitted, "rows": rows}


def serving(model: MakeModel, queries: Sequence[str]) -> dict[str, Any]:
    """One query from its words to its vector: ONNX and its tokenizer over torch, time and bytes."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        served = export_queries(model, Path(folder) / "query")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        encoder = onnxruntime.InferenceSession(served / "query.onnx", options, providers=["CPUExecutionProvider"])
        tokenizer = tokenizers.Tokenizer.from_file(str(served / "tokenizer.json"))

        def answered(query: str) -> np.ndarray:
            tokens = tokenizer.encode(query)
            return encoder.run(None, {"ids": np.array([tokens.ids]), "mask": np.array([tokens.attention_mask])})[0]

        apart = max(float(np.abs(answered(query) - model.encode_queries([query])).max()) for query in queries)
        asked = itertools.cycle(queries)
        with one_thread():
            seconds = _alternated(
                {"onnx": lambda: answered(next(asked)), "torch": lambda: model.encode_queries([next(asked)])}, times=50
            )
        model.save_pretrained(Path(folder) / "model")
        size = (served / "query.onnx").stat().st_size
        ratios = {
            "onnx_vs_torch_query": seconds["onnx"] / seconds["torch"],
            "onnx_vs_torch_bytes": size / (Path(folder) / "model" / "model.safetensors").stat().st_size,
            "onnx_difference": apart,
        }
    return {"ratios": ratios, "seconds": seconds, "bytes": size}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Latencies are those of one core."""
    set_threads(1)
    try:
        yield
    finally:
        set_threads()


def _alternated(calls: dict[str, Callable[[], Any]], times: int = 9) -> dict[str, float]:
    """Seconds of each call, medians: they take turns, so that what else the machine does meets all alike."""
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(times + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:  # the first warms up
                measured[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def _median(call: Callable[[], Any], times: int = 7) -> float:
    """Seconds of a call, median of several after one that warms up."""
    call()
    measured = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        measured.append(time.perf_counter() - began)
    return statistics.median(measured)


def _peer() -> ModuleType:
    try:
        import open_clip
    except ImportError:
        raise UserError(
            "The peer of the training benchmark is missing; install it with `pip install '.[peers]'`."
        ) from None
    return open_clip


def _open_clip_step(settings: Settings) -> float:
    """Seconds of `open_clip`'s step (forward, `ClipLoss`, backward, clip, AdamW), its batch made beforehand."""
    open_clip = _peer()
    model, size = settings.model, settings.training.batch_size
    text = {
        "context_length": settings.text.title_tokens, "vocab_size": settings.text.vocabulary, "width": model.width,
        "heads": model.heads, "layers": model.text_layers,
    }  # fmt: skip
    vision = {
        "timm_model_name": model.image_backbone, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear",
        "image_size": model.image_size,
    }  # fmt: skip
    torch.manual_seed(0)
    peer, loss = open_clip.CLIP(model.dim, vision, text), open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4)
    images = torch.randn(size, 3, model.image_size, model.image_size)
    titles = torch.randint(1, settings.text.vocabulary, (size, settings.text.title_tokens))

    def step() -> None:
        optimizer.zero_grad()
        loss(*peer(images, titles)[:3]).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), settings.training.clip)
        optimizer.step()

    return _median(step, 15)


def _flops(catalog: Catalog, settings: Settings) -> float:
    """Floating-point operations of one step forward and back, as torch counts them."""
    tokenizer = tokenizer_for(catalog, settings)
    model = MakeModel.from_settings(settings.model, settings.text, settings.objectives, tokenizer).train()
    inputs, pairs = Batches(catalog, tokenizer, settings, 0)("pretrain", 0)
    with FlopCounterMode(display=False) as counter:
        terms = objectives(
            model(inputs, settings.objectives),
            pairs,
            settings.objectives,
            settings.keywords,
            fusion=settings.model.fusion,
        )
        sum(terms.values()).backward()
    return float(counter.get_total_flops())


def _ceiling(side: int = 1024) -> float:
    """Floating-point operations a second of matrix products that fill the processor."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / _median(lambda: a @ b)
