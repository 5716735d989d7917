"""Which file an image cell names: paths as people, spreadsheets and cameras write them, folders, archives.

A name is looked up letter by letter first; then with `/` for `\\`, without blanks, quotes, a leading `/` or drive, in other letter
case, composed or decomposed (é), percent-encoded. Only regular files of the folder, or of archives in it, are ever opened.
"""

from __future__ import annotations

import contextlib
import functools
import html
import os
import re
import stat
import tarfile
import unicodedata
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from makelib.data.sources.fetch import MOST_BYTES
from makelib.data.sources.files.cells import is_address
from makelib.data.sources.files.rows import IMAGE_NAME
from makelib.runtime import UserError

#: an archive that unpacks to more than this is refused
MOST_UNPACKED = 256 * 2**30
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: tried in the place of the one that a cell names
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif")
#: the beginning of a photograph that stands in its cell, in base64: JPEG, PNG, GIF, WebP
_INLINE = re.compile(r"\s*(data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR)")
_DRIVE = re.compile(r"^[A-Za-z]:(?=/)")


#: what macOS, Windows, storage boxes, editors and interrupted downloads leave beside photographs: `._x.jpg`, `Thumbs.db`, `x.jpg~`, …
_HIDDEN = re.compile(
    r"\.|~\$|.*(~|\.part|\.crdownload|:zone\.identifier)$|(eh)?thumbs\w*\.db|desktop\.ini|icon\r$|__macosx$|@eadir$|[$#]recycle|lost\+found$"
    r"|system volume information$",
    re.IGNORECASE,
)


def hidden(name: str) -> bool:
    return _HIDDEN.match(name) is not None


class Lost(str):
    """Why a cell names no file that can be read."""


class Places:
    """Where photographs lie: the folder, its `images/`, what was unpacked of its archives, and what was fetched.

    `fetched`: address -> the file it was fetched to, or why not.
    """

    def __init__(self, folder: Path, unpacked: tuple[Path, ...] = ()) -> None:
        self.base = Path(os.path.realpath(folder))
        self.bases = (self.base, *(Path(os.path.realpath(path)) for path in unpacked))
        self.roots: list[str] = []
        for base in self.bases:
            self.roots += [str(base), os.path.join(base, "images")]
            if base is not self.base:  # an archive of folders
                self.roots += [entry.path for entry in os.scandir(base) if entry.is_dir() and entry.name != "images"]
        self.fetched: dict[str, Path | Lost] = {}
        #: cell -> the file that it names in another writing
        self.respelled: dict[str, str] = {}
        self.used_images = 0
        self._real_folder = functools.lru_cache(maxsize=1024)(self._looked_at)
        self._names = functools.lru_cache(maxsize=1024)(_names)

    # -- lookup ---------------------------------------------------------------------------------------------------

    def locate(self, cell: str) -> tuple[Path | Lost, int]:
        """The file that a cell names and its size in bytes, or why there is none. An empty cell is `Lost("")`."""
        if not cell.strip():
            return Lost(""), 0
        if is_address(cell):
            found = self.fetched.get(address(cell), Lost("is an address, not a file of the folder"))
            return (found, 0) if isinstance(found, Lost) else (found, os.path.getsize(found))
        if len(cell) > 200 and _INLINE.match(cell):
            return Lost("is the photograph itself, in base64, and not its name"), 0
        try:
            path = self._find(cell)
            if isinstance(path, Lost):
                return path, 0
            status = os.lstat(path)
        except (OSError, ValueError) as error:  # names too long, loops of links, no permission
            return Lost(f"cannot be opened ({type(error).__name__})"), 0
        if not stat.S_ISREG(status.st_mode):
            return Lost("is no regular file"), 0
        if status.st_size == 0:
            return Lost("is an empty file"), 0
        if status.st_size > MOST_BYTES:
            return Lost(f"is larger than {MOST_BYTES >> 20} MiB"), 0
        self.used_images += os.path.dirname(path) != str(self.base)
        return path, status.st_size

    def exists(self, cell: str) -> bool:
        """Whether a file or folder bears exactly this name."""
        try:
            return any(os.path.lexists(os.path.join(root, cell)) for root in self.roots)
        except ValueError:
            return False

    def listing(self, cell: str) -> list[str]:
        """The cell itself, or the files of the folder that it names, in the order of their names (video frames)."""
        if IMAGE_NAME.search(cell):
            return [cell]  # a file, as nearly all are; no need to look twice
        with contextlib.suppress(OSError, ValueError):
            path = self._find(cell) if cell.strip() and not is_address(cell) else Lost("")
            if not isinstance(path, Lost) and path.is_dir():
                names = [name for name in sorted(os.listdir(path)) if not hidden(name)]
                names = list(filter(IMAGE_NAME.search, names)) or names  # what else lies there is no photograph
                return [os.path.join(cell, name) for name in names]
        return [cell]  # `locate` says what is wrong with it

    def by_id(self) -> dict[str, str]:
        """Name without suffix, or name of a folder -> cell, of what lies beside each other under images/ or in an archive."""
        found: dict[str, str] = {}
        for root in self.roots[1:]:
            if os.path.isdir(root):
                for name in sorted(os.listdir(root), reverse=True):
                    path = Path(root, name)
                    if not hidden(name):
                        key = name if path.is_dir() else path.stem
                        found[fold(key)] = found[key] = os.path.relpath(path, self._base_of(root))
        return found

    def idle_images(self) -> int:
        """How many files lie under images/ of the folder."""
        if self.used_images:
            return 0
        return sum(not hidden(name) for _, _, names in os.walk(self.roots[1]) for name in names)

    def _base_of(self, root: str) -> Path:
        return next(base for base in reversed(self.bases) if Path(root).is_relative_to(base))

    def _find(self, cell: str) -> Path | Lost:
        for root in self.roots[:2]:  # as nearly all are written
            candidate = os.path.join(root, cell)
            if (kind := self._kind(candidate)) is None:
                continue
            path = self._inside(candidate, stat.S_ISLNK(kind))
            if path is not None and (not stat.S_ISLNK(kind) or os.path.lexists(path)):
                return path
        outside = self._inside(os.path.join(self.base, cell)) is None
        for written in _writings(cell):
            absolute = written.startswith(("/", "~/")) or _DRIVE.match(written) is not None
            parts = [part for part in _DRIVE.sub("", written).split("/") if part not in ("", ".", "~")]
            while parts and parts[0] == "..":  # written from where a program stood; what follows is looked for here
                outside, parts = True, parts[1:]
            outside |= absolute
            if not parts or ".." in parts:
                continue
            for start in range(len(parts) if absolute else 1):
                for root in self.roots:
                    path = self._folded(root, parts[start:])
                    if path is not None and (real := self._inside(path)) is not None:
                        self.respelled[cell] = os.path.relpath(path, self._base_of(root))
                        return real
        return Lost("leaves the folder" if outside else "does not exist")

    def _kind(self, path: str) -> int | None:
        """Mode of what lies there, links not followed; None where nothing does."""
        with contextlib.suppress(OSError, ValueError):
            if self._real_folder(os.path.dirname(path))[2]:  # most folders hold many photographs: asked once
                return os.lstat(path).st_mode
        return None

    def _inside(self, path: str | Path, link: bool | None = None) -> Path | None:
        """The real path, links followed (`link`: whether it is one, if that is known), or None where it leaves the folder."""
        parent, name = os.path.split(path)
        if name in ("", ".", "..") or (os.path.islink(path) if link is None else link):
            real, inside, _ = self._looked_at(os.fspath(path))
        else:
            folder, inside, _ = self._real_folder(parent)
            real = folder / name
        return real if inside else None

    def _looked_at(self, path: str) -> tuple[Path, bool, bool]:
        """The real path, whether it lies inside, and whether it is a folder."""
        real = Path(os.path.realpath(path))
        return real, any(real.is_relative_to(base) for base in self.bases), real.is_dir()

    def _folded(self, root: str, parts: list[str]) -> Path | None:
        here = root
        for part in parts:
            names = self._names(here)
            same = [part] if part in names.get(fold(part), ()) else names.get(fold(part), ())
            if not same and part is parts[-1]:  # without its suffix, or with another image's
                stem = fold(IMAGE_NAME.sub("", part))
                same = [name for suffix in SUFFIXES for name in names.get(f"{stem}.{suffix}", ())]
            if len(same) != 1:  # two files that differ in letter case only: neither is meant
                return None
            here = os.path.join(here, same[0])
        return Path(here)


def fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def address(cell: str) -> str:
    """An address as it is asked for: blanks and quotes go, `//cdn…` is https."""
    cell = cell.strip().strip("'\"").strip()
    return f"https:{cell}" if cell.startswith("//") else cell


def _names(folder: str) -> Mapping[str, tuple[str, ...]]:
    """Folded name -> the names in the folder that fold to it."""
    found: dict[str, tuple[str, ...]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            found[fold(name)] = (*found.get(fold(name), ()), name)
    return found


def _writings(cell: str) -> Iterator[str]:
    """The cell as it may have been meant, likelier readings first."""
    plain = cell.strip().strip("'\"\u200b\ufeff").strip()
    if plain.casefold().startswith("file:"):
        plain = re.sub(r"^file:(//(localhost)?(?=/))?", "", plain, flags=re.IGNORECASE)
        plain = urllib.parse.unquote(re.sub(r"^/(?=[A-Za-z]:)", "", plain))
    seen = set()
    for text in (plain, plain.replace("\\", "/")):
        for one in (text, re.sub(r"[?#].*$", "", text)):
            for written in (one, urllib.parse.unquote(one), html.unescape(one)):
                if written not in seen and "\0" not in written:
                    seen.add(written)
                    yield written


# -- archives -----------------------------------------------------------------------------------------------------------


def unpack(folder: Path, work: Path) -> tuple[tuple[Path, ...], list[str]]:
    """Unpack the archives of a folder under `work`: a folder each, and a line that says how many files came out.

    Only regular files of at most 32 MiB, never outside `work`. Raises `UserError` for an archive that cannot be read.
    """
    found, lines = [], []
    for archive in sorted(path for path in folder.iterdir() if path.name.casefold().endswith(ARCHIVES)):
        if hidden(archive.name) or not archive.is_file():
            continue
        target, count, total = work / f"archive-{len(found)}", 0, 0
        target.mkdir()
        try:
            for name, size, file in _members(archive):
                parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part != "/"]
                if not parts or ".." in parts or any(map(hidden, parts)) or size > MOST_BYTES:
                    continue
                path = target.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                data = file.read(MOST_BYTES + 1)
                total += len(data)
                if total > MOST_UNPACKED:
                    raise UserError(f"{archive} unpacks to more than {MOST_UNPACKED >> 30} GiB; unpack it by hand.")
                path.write_bytes(data)
                count += 1
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
            raise UserError(f"Cannot read {archive}: {error}. Unpack it under images/ or remove it.") from None
        found.append(target)
        lines.append(f"{archive.name}: {count:,} files were read from this archive.")
    return tuple(found), lines


def _members(archive: Path) -> Iterator[tuple[str, int, BinaryIO]]:
    if archive.suffix.casefold() == ".zip":
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                if not member.is_dir():
                    with file.open(member) as content:
                        yield member.filename, member.file_size, content
    else:
        with tarfile.open(archive) as file:
            for member in file:
                if member.isfile():
                    yield member.name, member.size, file.extractfile(member)
