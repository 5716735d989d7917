"""Photographs of unknown quality: each checked by decoding it as every reader will, kept byte by byte or named broken.

What Pillow decodes without complaint passes: a photograph that was cut off before it was encoded looks whole to it.
Memory holds a few portions of at most 16 MiB at a time; what is kept waits in one Arrow file on disk.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import io
import itertools
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from makelib.data.pictures import rgb
from makelib.runtime import progress

#: image files that are read; others (EPS, which would start Ghostscript) are no photographs
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
MOST_PIXELS = 40_000_000
MOST_BYTES = 32 * 2**20
PORTION_FILES, PORTION_BYTES = 250, 16 * 2**20
_ORIENTATION = 0x0112
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

    def read(self, folder: Path, cells: Sequence[str], broken: Callable[[int, Photo], None]) -> None:
        """Read what the cells name, `broken(cell, photo)` for each that costs a product an image."""
        workers = min(4, os.cpu_count() or 1)
        _real_folder.cache_clear()
        bar = progress(description="images", total=len(cells), unit="img")
        with (
            warnings.catch_warnings(),
            concurrent.futures.ThreadPoolExecutor(workers) as pool,  # Pillow decodes without the interpreter's lock
            pa.OSFile(str(self._spool), "wb") as sink,
            pa.ipc.new_stream(sink, _SCHEMA) as writer,
        ):
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what is broken is caught and listed
            for photos in _ahead(pool, _portions(Path(os.path.realpath(folder)), cells), depth=2 * workers):
                for photo in photos:
                    if photo.reason:
                        broken(len(self.digests), photo)
                    elif photo.data is not None:
                        self.sizes[photo.size] += 1
                        self.modes[photo.mode] += 1
                    self.digests.append(photo.digest)
                writer.write_batch(pa.record_batch([pa.array([photo.data for photo in photos], pa.binary())], _SCHEMA))
                bar.update(len(photos))
        bar.close()

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


def _portions(base: Path, cells: Sequence[str]) -> Iterator[list[Path | Photo]]:
    portion: list[Path | Photo] = []
    weight = 0
    for cell in cells:
        found, size = locate(base, cell)
        if portion and (len(portion) == PORTION_FILES or weight + size > PORTION_BYTES):
            yield portion
            portion, weight = [], 0
        portion.append(found)
        weight += size
    if portion:
        yield portion


def locate(base: Path, cell: str) -> tuple[Path | Photo, int]:
    """The file that an image cell names, relative to the (real) folder `base` or its `images/`, and its size in bytes.

    Only regular files inside `base` count, links followed; else the `Photo` that says why not.
    """
    if not cell.strip():
        return Photo(), 0
    if "://" in cell:
        return Photo(reason="is an address, not a file of the folder"), 0
    try:
        for candidate in (os.path.join(base, cell), os.path.join(base, "images", cell)):
            path = _real(candidate)
            if not path.is_relative_to(base):
                return Photo(reason="leaves the folder"), 0
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                status = os.lstat(path)
                if not stat.S_ISREG(status.st_mode):
                    return Photo(reason="is no regular file"), 0
                if status.st_size == 0:
                    return Photo(reason="is an empty file"), 0
                if status.st_size > MOST_BYTES:
                    return HEAVY, 0
                return path, status.st_size
    except (OSError, ValueError) as error:  # names too long, loops of links, no permission
        return Photo(reason="cannot be opened", detail=type(error).__name__), 0
    return Photo(reason="does not exist"), 0


def listing(base: Path, cell: str) -> list[str]:
    """The cell itself, or the files of the folder inside `base` that it names, in the order of their names (video frames)."""
    try:
        path = Path(os.path.realpath(os.path.join(base, cell)))
        if cell.strip() and path.is_dir() and path.is_relative_to(base):
            return [os.path.join(cell, name) for name in sorted(os.listdir(path))]
    except (OSError, ValueError):
        pass  # `locate` says what is wrong with it
    return [cell]


def _real(path: str) -> Path:
    """`os.path.realpath`, which looks at each parent folder once per import instead of once per file."""
    parent, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return Path(os.path.realpath(path))
    return _real_folder(parent) / name


@functools.lru_cache(maxsize=1024)
def _real_folder(path: str) -> Path:
    return Path(os.path.realpath(path))


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
        if image.getexif().get(_ORIENTATION) in range(2, 9):
            mode += ", turned by EXIF"
        shown = rgb(image)
    except Image.DecompressionBombError as error:
        return Photo(reason=f"has more than {MOST_PIXELS // 10**6} million pixels", detail=str(error))
    except Image.UnidentifiedImageError:
        return Photo(reason="is not an image that can be read")
    except Exception as error:  # decoders raise whatever broken bytes lead them to; each costs one image
        return Photo(reason="is a broken image", detail=f"{type(error).__name__}: {error}")
    digest = hashlib.blake2b(shown.tobytes(), digest_size=16, key=f"{shown.size}".encode()).digest()
    return Photo(data, digest, size, mode)
