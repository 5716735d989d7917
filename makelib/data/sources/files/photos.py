"""Photographs of unknown quality: each checked by decoding it as every reader will, kept byte by byte or named broken.

What Pillow decodes without complaint passes: a photograph that was cut off before it was encoded looks whole to it.
Memory holds a few portions of at most 16 MiB at a time; what is kept waits in one Arrow file on disk.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import hashlib
import io
import itertools
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from makelib.data.pictures import orientation, rgb
from makelib.data.sources.files.paths import MOST_BYTES, Lost, Places
from makelib.runtime import progress

#: image files that are read; others (EPS, which would start Ghostscript) are no photographs
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
MOST_PIXELS = 40_000_000
PORTION_FILES, PORTION_BYTES = 250, 16 * 2**20
_SCHEMA = pa.schema([("bytes", pa.binary())])


@dataclass(frozen=True)
class Photo:
    """What became of an image cell: `data` and the `digest` of its pixels, or a `reason`, or nothing if it is empty."""

    data: bytes | None = None
    digest: bytes | None = None
    size: str = ""
    mode: str = ""
    reason: str = ""
    detail: str = ""


HEAVY = Photo(reason=f"is larger than {MOST_BYTES >> 20} MiB")


class Photos:
    """The photographs that image cells name, read once and kept in a file of their own.

    Attributes: `digests` per cell, of the pixels as shown, None where there is no photograph; `sizes`, `modes` counted.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self.digests: list[bytes | None] = []
        self.sizes: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()

    def read(self, places: Places, cells: Sequence[str], broken: Callable[[int, Photo], None]) -> None:
        """Read what the cells name, `broken(cell, photo)` for each that costs a product an image."""
        workers = min(4, os.cpu_count() or 1)
        with (
            progress(description="images", total=len(cells), unit="img") as bar,
            warnings.catch_warnings(),
            concurrent.futures.ThreadPoolExecutor(workers) as pool,  # Pillow decodes without the interpreter's lock
            pa.OSFile(str(self._spool), "wb") as sink,
            pa.ipc.new_stream(sink, _SCHEMA) as writer,
        ):
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what is broken is caught and listed
            for photos in _ahead(pool, _portions(places, cells), depth=2 * workers):
                for photo in photos:
                    if photo.reason:
                        broken(len(self.digests), photo)
                    elif photo.data is not None:
                        self.sizes[photo.size] += 1
                        self.modes[photo.mode] += 1
                    self.digests.append(photo.digest)
                writer.write_batch(pa.record_batch([pa.array([photo.data for photo in photos], pa.binary())], _SCHEMA))
                bar.update(len(photos))

    def parts(self, counts: np.ndarray, wanted: np.ndarray) -> Iterator[list[list[bytes]]]:
        """The encoded photographs of each product that is `wanted` (bool, one per product), a few hundred products or
        16 MiB at a time; `counts` int64, how many cells each product has, in the order read."""
        photos, part, weight = self._each(), [], 0
        for count, keep in zip(counts.tolist(), wanted.tolist(), strict=True):
            own = [photo for photo in itertools.islice(photos, count) if photo is not None]
            if keep:
                part.append(own)
                weight += sum(map(len, own))
            if len(part) == PORTION_FILES or weight > PORTION_BYTES:
                yield part
                part, weight = [], 0
        if part:
            yield part

    def __getitem__(self, cell: int) -> bytes:
        return self._mapped[cell].as_py()

    @functools.cached_property
    def _mapped(self) -> pa.ChunkedArray:
        return pa.ipc.open_stream(pa.memory_map(str(self._spool))).read_all().column(0)

    def _each(self) -> Iterator[bytes | None]:
        with pa.OSFile(str(self._spool), "rb") as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield from batch.column(0).to_pylist()

    def health(self) -> dict[str, Any]:
        common = dict(self.sizes.most_common(8))
        if rest := self.sizes.total() - sum(common.values()):
            common["others"] = rest
        return {"width_x_height": common, "modes": dict(self.modes.most_common())}


def _ahead(pool: concurrent.futures.Executor, portions: Iterator[list], depth: int) -> Iterator[list[Photo]]:
    """`pool.map(_inspect, portions)` that never holds more than `depth` portions."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for portion in portions:
        pending.append(pool.submit(_inspect, portion))
        if len(pending) >= depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _portions(places: Places, cells: Sequence[str]) -> Iterator[list[Path | Photo]]:
    portion: list[Path | Photo] = []
    weight = 0
    for cell in cells:
        found, size = places.locate(cell)
        if isinstance(found, Lost):
            reason, _, detail = found.partition(" (")
            found = Photo(reason=reason, detail=detail.rstrip(")"))
        if portion and (len(portion) == PORTION_FILES or weight + size > PORTION_BYTES):
            yield portion
            portion, weight = [], 0
        portion.append(found)
        weight += size
    if portion:
        yield portion


@functools.cache
def _formats() -> list[str]:
    Image.init()  # registers every decoder; older Pillows have none for AVIF
    return [name for name in FORMATS if name in Image.OPEN]


def _inspect(portion: list[Path | Photo]) -> list[Photo]:
    return [inspect(found) if isinstance(found, Path) else found for found in portion]


def inspect(source: Path | bytes) -> Photo:
    """A photograph's bytes as they are, with the digest of its pixels, or why it is none."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        if len(data) > MOST_BYTES:
            return HEAVY
        image = Image.open(io.BytesIO(data), formats=_formats())
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height}")
        size, mode = f"{image.width} x {image.height}", image.mode
        if getattr(image, "is_animated", False) and image.format != "MPO":  # an MPO's further frames are depth or views
            mode += ", animated"
        if orientation(image) > 1:
            mode += ", turned by EXIF"
        shown = rgb(image)
    except Image.DecompressionBombError as error:
        return Photo(reason=f"has more than {MOST_PIXELS // 10**6} million pixels", detail=str(error))
    except Image.UnidentifiedImageError:
        if re.match(rb"....ftyp(hei[cmsx]|hev[cmx]|mif1|msf1)", data, re.DOTALL):
            return Photo(reason="is a HEIC photograph, which is not read")
        return Photo(reason="is not an image that can be read")
    except Exception as error:  # decoders raise whatever broken bytes lead them to; each costs one image
        return Photo(reason="is a broken image", detail=f"{type(error).__name__}: {error}")
    digest = hashlib.blake2b(shown.tobytes(), digest_size=16, key=f"{shown.size}".encode()).digest()
    return Photo(data, digest, size, mode)
