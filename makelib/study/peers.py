"""Pretrained dual encoders (CLIP, SigLIP and their e-commerce kin) as rivals: as they come, with linear adapters, fine-tuned.

A peer reads queries, titles and photographs with its own tokenizer and pre-processing; only the first photograph of a product is
shown to it. Its product is the mean of the unit-length vectors of title and image, of those that are there (CLIP-style, as the
fusion `mean`). What is trained sees the same clicks in the same batches with the same false negatives as the arms, and is
chosen on validation queries like them; its one objective is `query_product`, and nothing of it is hidden or augmented.

N products, Q queries, E the peer's own width.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from makelib.data.catalog import Catalog
from makelib.data.tokens import tokenizer_for
from makelib.model.batches import Batches
from makelib.model.fusion import masked_softmax
from makelib.model.losses import contrast
from makelib.model.optim import schedule
from makelib.model.training import training_key
from makelib.ranks import accelerator
from makelib.runtime import UserError, atomic_file, code_version, fingerprint, progress
from makelib.settings import Settings
from makelib.study.arms import queries_of, scoring_key
from makelib.study.lines import kept
from makelib.study.metrics import evaluate

#: as it comes, a peer has a line for each modality alone, too: how the line's name ends, and what it looks at
MODALITIES = {"": (True, True), " title": (True, False), " image": (False, True)}
#: texts and photographs encoded at once
PIECE = 64
HOW = (
    "write local-dir:<folder>, open_clip:<architecture>/<tag>, open_clip:hf-hub:<owner>/<name> or "
    "transformers:<owner>/<name>"
)

Inputs = Mapping[str, Tensor]


class Peer(nn.Module):
    """A pretrained dual encoder and what it needs to read a catalogue.

    Args:
        name: what tables call it.
        tower: the module with all weights.
        tokenize, prepare: strings, or RGB photographs, to what `text` and `image` take (tensors with a row each).
        text, image: the tower and those to vectors (n, E) of any length.
    """

    def __init__(
        self,
        name: str,
        tower: nn.Module,
        tokenize: Callable[[list[str]], Inputs],
        prepare: Callable[[list[Image.Image]], Inputs],
        text: Callable[[nn.Module, Inputs], Tensor],
        image: Callable[[nn.Module, Inputs], Tensor],
    ) -> None:
        super().__init__()
        self.name, self.tower = name, tower
        self.tokenize, self.prepare, self.text, self.image = tokenize, prepare, text, image

    def texts(self, strings: Sequence[str]) -> Tensor:
        """Vectors (n, E) of strings."""
        return self.text(self.tower, self._here(self.tokenize(list(strings))))

    def images(self, photographs: Sequence[Image.Image]) -> Tensor:
        """Vectors (n, E) of RGB photographs."""
        return self.image(self.tower, self._here(self.prepare(list(photographs))))

    def _here(self, inputs: Inputs) -> Inputs:
        device = next(self.tower.parameters()).device
        return {name: tensor.to(device) for name, tensor in inputs.items()}


def load_peer(name: str) -> Peer:
    """A pretrained dual encoder by name: `local-dir:<folder>` in the layout of `open_clip` or `transformers`,
    `open_clip:<architecture>/<tag>`, `open_clip:hf-hub:<owner>/<name>` or `transformers:<owner>/<name>`.

    Weights in a folder are safetensors; nothing is unpickled, and no code of a checkpoint is run. Raises `UserError` for what
    cannot be had.
    """
    kind, _, where = name.partition(":")
    folder = Path(where)
    if kind not in ("local-dir", "open_clip", "transformers") or not where:
        raise UserError(f"ablation.peers: {name!r} names no pretrained encoder; {HOW}.")
    if kind == "local-dir" and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"ablation.peers: {folder} holds no model in safetensors; save it with `save_pretrained`, or {HOW}."
        )
    as_open_clip = kind == "open_clip" or (folder / "open_clip_config.json").is_file()
    try:
        return (_open_clip if as_open_clip else _transformers)(name, where)
    except ImportError as error:
        raise UserError(f"ablation.peers: {name} needs a package: pip install 'makelib[peers]' ({error}).") from error
    except Exception as error:  # a hub that cannot be reached raises whatever its client raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"ablation.peers: cannot load {name!r}: {reason}. To mend it: {HOW}.") from error


def _open_clip(name: str, where: str) -> Peer:
    import open_clip

    architecture, tag = name if name.startswith("local-dir:") else where, None
    if not architecture.startswith(("local-dir:", "hf-hub:")):
        architecture, _, tag = where.partition("/")
    tower, preprocess = open_clip.create_model_from_pretrained(architecture, pretrained=tag)
    tokenizer = open_clip.get_tokenizer(architecture)
    return Peer(
        where if tag else Path(where).name,
        tower,
        tokenize=lambda strings: {"text": tokenizer(strings)},
        prepare=lambda photographs: {"image": torch.stack([preprocess(each) for each in photographs])},
        text=lambda tower, inputs: tower.encode_text(**inputs),
        image=lambda tower, inputs: tower.encode_image(**inputs),
    )


def _transformers(name: str, where: str) -> Peer:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    local = name.startswith("local-dir:")
    tower = AutoModel.from_pretrained(where, use_safetensors=True, local_files_only=local)
    if not hasattr(tower, "get_image_features"):
        raise UserError(f"{type(tower).__name__} is no dual encoder of texts and images")
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local)
    processor = AutoImageProcessor.from_pretrained(where, local_files_only=local)
    text = tower.config.text_config
    # SigLIP has learned from texts that are padded to their full length, and reads others badly
    padding = "max_length" if tower.config.model_type.startswith("siglip") else True
    return Peer(
        Path(where).name,
        tower,
        tokenize=lambda strings: tokenizer(
            strings, padding=padding, truncation=True, max_length=text.max_position_embeddings, return_tensors="pt"
        ),
        prepare=lambda photographs: processor(images=photographs, return_tensors="pt"),
        text=lambda tower, inputs: _pooled(tower.get_text_features(**inputs)),
        image=lambda tower, inputs: _pooled(tower.get_image_features(**inputs)),
    )


def _pooled(found: Any) -> Tensor:
    """`transformers` before 5 returns the vectors themselves."""
    return found if isinstance(found, Tensor) else found.pooler_output


@dataclass
class Read:
    """What a peer makes of some queries (Q, E), titles and images (N, E), zeros where there is none; present (N, 2)."""

    queries: Tensor
    titles: Tensor
    images: Tensor
    present: Tensor


def read(peer: Peer, catalog: Catalog, queries: np.ndarray, products: np.ndarray) -> Read:
    """Some rows of a catalogue as a peer reads them, with gradients where it learns."""
    asked, titles = catalog.queries["query"].iloc[queries], catalog.products["title"].fillna("").iloc[products]
    vectors = peer.texts([*asked, *titles])
    images, there = vectors.new_zeros(len(products), vectors.shape[1]), catalog.present[products, 1]
    if there.any():
        shown = torch.from_numpy(there).to(images.device)
        images = images.masked_scatter(shown[:, None], peer.images([catalog.image(row) for row in products[there]]))
    present = torch.from_numpy(catalog.present[products]).to(vectors)
    return Read(vectors[: len(queries)], vectors[len(queries) :], images, present)


@torch.no_grad()
def read_all(peer: Peer, catalog: Catalog) -> Read:
    """A whole catalogue as a peer reads it now."""
    peer.eval()
    ends = (len(catalog.queries), len(catalog))
    starts = range(0, max(ends), PIECE)
    pieces = [
        read(peer, catalog, *(np.arange(start, min(start + PIECE, end)) for end in ends))
        for start in progress(starts, description=f"reading with {peer.name}", unit="batch")
    ]
    return Read(*(torch.cat([getattr(piece, field.name) for piece in pieces]) for field in fields(Read)))


def _kept_reading(peer: Peer, catalog: Catalog, weights: str) -> tuple[Read, float]:
    """`read_all` of a peer as it came, once per weights and catalogue, in the catalogue's cache; and the seconds that it took."""
    file = catalog.folder / ".cache" / f"peer-{fingerprint(weights, catalog.fingerprint)}.npz"
    if not file.is_file():
        began, made = time.time(), read_all(peer, catalog)
        arrays = {field.name: getattr(made, field.name).cpu().numpy() for field in fields(Read)}
        with atomic_file(file) as draft:
            np.savez(draft, seconds=time.time() - began, **arrays)
    with np.load(file) as table:
        device = next(peer.parameters()).device
        vectors = (torch.from_numpy(table[field.name]).to(device) for field in fields(Read))
        return Read(*vectors), float(table["seconds"])


# -- adapters, and training -------------------------------------------------------------------------------------------


class Adapters(nn.Module):
    """A linear map each for queries, titles and images, starting as the identity, and how a product is made of two vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.title, self.image = (nn.Linear(width, width) for _ in range(3))
        for each in (self.query, self.title, self.image):
            nn.init.eye_(each.weight)
            nn.init.zeros_(each.bias)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, found: Read, looks: tuple[bool, bool] = (True, True)) -> tuple[Tensor, Tensor]:
        """Queries (Q, E) and products (N, E), unit length; `looks`: at titles, at images."""
        streams = F.normalize(torch.stack([self.title(found.titles), self.image(found.images)], dim=1), dim=-1)
        alone = found.present.new_tensor(looks).expand_as(found.present)
        weights = masked_softmax(torch.zeros_like(alone), found.present) if all(looks) else alone
        products = (weights[..., None] * streams).sum(dim=1)
        return F.normalize(self.query(found.queries), dim=-1), F.normalize(products, dim=-1)


def scored(
    adapters: Adapters,
    found: Read,
    catalog: Catalog,
    rows: np.ndarray,
    settings: Settings,
    looks: tuple[bool, bool] = (True, True),
) -> pd.DataFrame:
    """Scores of the queries `rows` against the whole catalogue, by exact search."""
    depth = min(max(settings.evaluation.cutoffs), len(catalog))
    with torch.no_grad():
        queries, products = (vectors.cpu().numpy() for vectors in adapters(found, looks))
    ranked = np.argsort(-(queries[rows] @ products.T), axis=1, kind="stable")[:, :depth]
    return evaluate(catalog, rows, ranked, settings.evaluation)


def train(
    peer: Peer, found: Read, catalog: Catalog, settings: Settings, seed: int, fine_tune: bool
) -> tuple[Adapters, Read]:
    """Adapters trained on what a peer made of a catalogue; with `fine_tune` together with the peer, which is changed in place.

    As many steps, batches and evaluations as an arm has; adapters learn at `training.learning_rate`, the peer at
    `training.backbone_rate`. Returns the best state by Recall of validation queries, step 0 included.
    """
    training, device = settings.training, next(peer.parameters()).device
    torch.manual_seed(seed)
    adapters = Adapters(found.queries.shape[1]).to(device)
    learned = [(training.learning_rate, adapters), *([(training.backbone_rate, peer)] if fine_tune else [])]
    groups = [{"params": list(module.parameters()), "peak": rate} for rate, module in learned]
    optimizer = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
    batches = Batches(catalog, tokenizer_for(catalog, settings), settings, seed)
    validation = queries_of(catalog, settings, "validation")
    metric = f"Recall@{max(settings.evaluation.cutoffs)}"

    def measured() -> tuple[float, Adapters, Read]:
        now = read_all(peer, catalog) if fine_tune else found
        recall = scored(adapters, now, catalog, validation, settings)[metric].mean() if len(validation) else np.nan
        return recall, copy.deepcopy(adapters), now

    best = measured()
    every = max(1, round(training.steps / max(1, training.evaluations)))
    what = f"{'fine-tuning' if fine_tune else 'adapting'} {peer.name}"
    for step in progress(range(training.steps), description=what, unit="step"):
        queries, products = batches.rows("pretrain", step)
        masks = (torch.from_numpy(mask).to(device) for mask in batches.masks(queries, products))
        if fine_tune:
            peer.train()
            shown = read(peer, catalog, queries, products)
        else:
            shown = Read(found.queries[queries], *(x[products] for x in (found.titles, found.images, found.present)))
        loss = contrast(*adapters(shown), adapters.logit_scale.exp(), *masks)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, training.steps, training.warmup)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for _, module in learned for p in module.parameters()], training.clip)
        optimizer.step()
        with torch.no_grad():
            adapters.logit_scale.clamp_(0.0, math.log(100.0))
        if (step + 1) % every == 0 or step + 1 == training.steps:
            now = measured()
            best = (
                best if now[0] <= best[0] else now
            )  # also where there is nothing to validate on (NaN): the last counts
    return best[1:]


# -- lines of a table -------------------------------------------------------------------------------------------------


def peer_lines(run: Path, catalog: Catalog, settings: Settings, rows: np.ndarray) -> dict[str, dict[int, pd.DataFrame]]:
    """Lines of all peers that `ablation.peers` names, as `ablation.peer_modes` asks: name -> seed -> scores of queries `rows`.

    What is kept in the run is not computed again. Raises `UserError` for a peer that cannot be had.
    """
    lines: dict[str, dict[int, pd.DataFrame]] = {}
    for name in settings.ablation.peers:
        peer = load_peer(name).to(accelerator("fp32").device)
        tensors = sorted(peer.state_dict().items())
        weights = fingerprint(*(key.encode() + each.cpu().contiguous().numpy().tobytes() for key, each in tensors))
        judged = (weights, catalog.fingerprint, scoring_key(settings), code_version(("study/peers.py",)))
        for line, mode, looks, seed in _asked(peer.name, settings):
            taught = () if seed is None else (training_key(settings, seed, catalog),)
            make = functools.partial(_line, peer, catalog, settings, rows, weights, mode, looks, seed)
            table = kept(run, fingerprint(line, *judged, *taught), line, seed, make)
            lines.setdefault(line, {}).update(dict.fromkeys(settings.seeds if seed is None else [seed], table))
    return lines


def _asked(name: str, settings: Settings) -> Iterator[tuple[str, str, tuple[bool, bool], int | None]]:
    """Line, mode, what it looks at and seed of all that is asked of a peer."""
    for mode in settings.ablation.peer_modes:
        if mode == "zero-shot":
            yield from ((f"{name} zero-shot{of}", mode, looks, None) for of, looks in MODALITIES.items())
        else:
            yield from ((f"{name} {mode}", mode, (True, True), seed) for seed in settings.seeds)


def _line(
    peer: Peer,
    catalog: Catalog,
    settings: Settings,
    rows: np.ndarray,
    weights: str,
    mode: str,
    looks: tuple[bool, bool],
    seed: int | None,
) -> tuple[pd.DataFrame, dict[str, float]]:
    found, reading = _kept_reading(peer, catalog, weights)
    began, adapters, learned = time.time(), Adapters(found.queries.shape[1]).to(found.queries.device), 0
    if mode != "zero-shot":
        if mode == "fine-tuned":
            peer = copy.deepcopy(peer)
        adapters, found = train(peer, found, catalog, settings, seed, mode == "fine-tuned")
        learned = size(adapters) + (size(peer) if mode == "fine-tuned" else 0)
    scores = scored(adapters, found, catalog, rows, settings, looks)
    return scores, {
        "parameters": size(peer) + (size(adapters) if mode != "zero-shot" else 0),
        "learned": learned,
        "megaflops_per_product": _flops(peer) / 1e6,
        "seconds": reading + time.time() - began,
    }


def size(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(peer: Peer) -> float:
    """Floating-point operations to encode one product with title and image, as torch counts them."""
    peer.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        peer.texts(["a title"])
        peer.images([Image.new("RGB", (64, 64))])
    return float(counter.get_total_flops())
