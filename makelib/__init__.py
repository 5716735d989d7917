"""makelib: would looking at the images, not only the titles, make a product search better, and can it be proved?

Five rooms, in the order in which the data flows; imports never run upwards in this list (`make check` says so):

- `makelib.data`: the three tables, text, and where catalogues come from;
- `makelib.model`: the method: encoders, Modal Adaptation, Keyword Enhancement, losses, the training loop;
- `makelib.search`: index, retriever, explanations;
- `makelib.study`: the grid of arms, metrics, statistics, baselines, probes, benchmarks;
- `makelib.workbook`: what people look at: figures, explorers, headless runs, offline pages.

In the hall stand `settings`, `runtime`, `ranks` (several processes as one) and the command line. The names below are the door; each is
imported when it is first asked for.
"""

import importlib

__version__ = "0.1.0"

_DOOR = {
    "AblationExplorer": "makelib.workbook.ablations.widget",
    "Catalog": "makelib.data.catalog",
    "CatalogueMap": "makelib.workbook.map",
    "MakeModel": "makelib.model.make",
    "ProductIndex": "makelib.search.index",
    "Retriever": "makelib.search.retriever",
    "Experiment": "makelib.study.experiment",
    "QueryExplorer": "makelib.workbook.explorer.widget",
}

__all__ = [
    "AblationExplorer",
    "Catalog",
    "CatalogueMap",
    "Experiment",
    "MakeModel",
    "ProductIndex",
    "QueryExplorer",
    "Retriever",
]


def __getattr__(name: str) -> object:
    if name in _DOOR:
        from makelib.runtime import loading

        with loading():
            return getattr(importlib.import_module(_DOOR[name]), name)
    raise AttributeError(f"module 'makelib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
