"""Where catalogues come from. Each source writes the three tables of `makelib.data.catalog`; nothing after them knows which."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path

from makelib.data.catalog import Catalog
from makelib.runtime import UserError, alone, fingerprint
from makelib.settings import Settings


def settings_for(name: str, settings: Settings) -> Settings:
    """The settings with what the catalogue's name says: `bazaar-zh` is `bazaar` with `bazaar.language` "zh"."""
    return settings.replace(**{"bazaar.language": "zh"}) if name == "bazaar-zh" else settings


def open_catalog(name: str, settings: Settings, data: Path = Path("data")) -> Catalog:
    """The catalogue of that name, made on first use and kept under `data`.

    `bazaar` is the generated world, `bazaar-zh` the same in Chinese words; a path is a catalogue folder as
    `makelib.data.catalog` writes it, or a raw folder with `products.csv|parquet|jsonl` (imported with the settings in
    `settings.files`, again when a file in it changed); `hub:<name>` is a public data set.
    Raises `UserError` for any other name.
    """
    if name in ("bazaar", "bazaar-zh"):
        from makelib.data.sources.bazaar.world import VERSION, generate

        world = settings_for(name, settings).bazaar
        folder = Path(data) / f"bazaar-{fingerprint(VERSION, dataclasses.asdict(world))}"
        return _made(folder, lambda: generate(world, folder))
    if name.startswith("hub:"):
        from makelib.data.sources import hub

        return hub.open_set(name.removeprefix("hub:"), settings.files, data)
    folder = Path(name)
    if (folder / "catalogue.json").is_file():
        return _open(folder)
    if folder.is_dir():
        from makelib.data.sources.files.importer import import_folder

        key = fingerprint(str(folder.resolve()), dataclasses.asdict(settings.files), _state(folder))
        out = Path(data) / f"{folder.resolve().name}-{key}"
        return _made(out, lambda: import_folder(folder, out, settings.files))
    raise UserError(
        f"There is no catalogue {name!r}: use `bazaar`, `bazaar-zh`, a folder with products.csv (or .parquet, .jsonl), a "
        "folder that `python -m makelib data import` wrote, or `hub:<name>` for a public data set."
    )


def _made(folder: Path, make: Callable[[], Catalog]) -> Catalog:
    """The catalogue in `folder`, made if it is not there; of two processes that want it one makes it and the other waits."""
    if not folder.is_dir():
        with alone(folder):
            if not folder.is_dir():
                return make()
    return _open(folder)


#: catalogues that somebody in this process holds open
_OPEN: weakref.WeakValueDictionary[Hashable, Catalog] = weakref.WeakValueDictionary()


def _open(folder: Path) -> Catalog:
    """The catalogue in a folder; whoever opens it again while it is held, and unchanged, shares it."""
    described = folder / "catalogue.json"
    key = (folder, folder.resolve(), described.stat().st_mtime_ns if described.is_file() else None)
    if (catalog := _OPEN.get(key)) is None:
        catalog = _OPEN[key] = Catalog.open(folder)
    return catalog


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file, so that an edited folder is imported again and an untouched one is not."""
    found = []
    for parent, _, files in os.walk(folder):
        for name in files:
            status = os.lstat(os.path.join(parent, name))
            found.append((os.path.relpath(os.path.join(parent, name), folder), status.st_size, status.st_mtime_ns))
    return sorted(found)
