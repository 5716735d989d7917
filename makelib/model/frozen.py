"""Frozen image towers: a catalogue's maps are computed once and then read.

A step with a frozen tower costs no convolution (LiT: Zhai et al. 2022, "locked-image tuning").
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from makelib.data.catalog import Catalog
from makelib.model.encoders import ImageEncoder
from makelib.model.make import MakeModel
from makelib.runtime import alone, atomic_file, fingerprint, progress

Further = tuple[np.ndarray, np.ndarray]
#: photographs between two marks from which an interrupted computation goes on
PIECE = 1024


def pictures(catalog: Catalog, model: MakeModel, make: bool = True) -> tuple[np.ndarray, np.ndarray, Further]:
    """What `model` reads of a catalogue's photographs: the first of each product, bool (N,) where there is one, and the
    further ones with the product row of each, as `Catalog.images` and `Catalog.further_images` give them.

    Where the backbone is frozen not pixels but its maps, float16 (N, 2, P, C), memory-mapped: of the photograph, and of its
    mirror image. Without `make` maps that nobody has computed stay so, and these are pixels, which the model takes as well: a page
    of hits, or what is new in a catalogue, is not worth the maps of all.
    """
    size = model.config.image_size
    (pixels, has_image), (further, owner) = catalog.images(size), catalog.further_images(size)
    if model.sees_image and model.config.image_frozen and (make or _file("first", catalog, model).is_file()):
        pixels, further = _maps("first", pixels, catalog, model), _maps("further", further, catalog, model)
    return pixels, has_image, (further, owner)


#: without `make`, and kept: every page of hits asks for it, and of a million products the flags alone take milliseconds
at_hand = functools.lru_cache(maxsize=8)(functools.partial(pictures, make=False))


def _maps(name: str, pixels: np.ndarray, catalog: Catalog, model: MakeModel) -> np.ndarray:
    """Computed once per backbone, size and catalogue into the catalogue's cache; an interrupted computation goes on."""
    encoder, file = model.image_encoder, _file(name, catalog, model)
    shape = (len(pixels), 2, encoder.grid**2, encoder.channels)
    if len(pixels) == 0:
        return np.zeros(shape, np.float16)
    with alone(file):
        if not file.is_file():
            _compute(encoder, pixels, file, shape, model.config.image_backbone)
    return np.load(file, mmap_mode="r")


def _file(name: str, catalog: Catalog, model: MakeModel) -> Path:
    told = (model.config.image_backbone, model.config.image_size, model.config.image_levels)
    key = fingerprint(_weights(model.image_encoder), *told, catalog.fingerprint)
    return catalog.folder / ".cache" / f"maps-{name}-{key}.npy"


@functools.lru_cache(maxsize=8)  # no step changes a frozen tower, and each search would hash its megabytes anew
def _weights(encoder: ImageEncoder) -> str:
    state, later = encoder.state_dict(), ("project", "position", "norm")  # these follow on the maps
    kept = (state[name] for name in sorted(state) if not name.startswith(later))
    return fingerprint(*(tensor.cpu().contiguous().numpy().tobytes() for tensor in kept))


@torch.inference_mode()
def _compute(encoder: ImageEncoder, pixels: np.ndarray, file: Path, shape: tuple[int, ...], name: str) -> None:
    begun, mark = file.with_suffix(".begun"), file.with_suffix(".done")
    done = int(mark.read_text()) if begun.is_file() and mark.is_file() else 0
    maps = np.lib.format.open_memmap(begun, "r+" if done else "w+", np.float16, shape)
    bar = progress(description=f"maps of {name}", total=len(pixels), unit="img")
    bar.update(done)
    for start in range(done, len(pixels), PIECE):
        for first in range(start, min(start + PIECE, len(pixels)), 64):
            shown = torch.from_numpy(np.array(pixels[first : min(first + 64, start + PIECE)])).to(encoder.mean.device)
            for twin, picture in enumerate((shown, shown.flip(2))):
                maps[first : first + len(shown), twin] = encoder.maps(picture).cpu().numpy()
            bar.update(len(shown))
        maps.flush()
        with atomic_file(mark) as draft:
            draft.write_text(str(min(start + PIECE, len(pixels))))
    bar.close()
    begun.replace(file)
    mark.unlink()
