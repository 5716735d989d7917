"""Public data sets by name: `hub:<name>` becomes a raw folder, which `makelib.data.sources.files` imports like any other.

`datasets` streams the Parquet files of a repository, from the Hub or from a copy of the same files under
`data/hub/<owner>/<name>`; only the columns that are needed are read. What is fetched lies in files of its own, each
whole or absent, so a fetch that was killed goes on where it was and ends in the same folder. Here is decided what the
judgments of each set mean; what a good row or image is, `files` decides.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from makelib import settings
from makelib.data.catalog import Catalog
from makelib.data.sources import fetch as fetching
from makelib.data.sources.files.importer import import_folder
from makelib.runtime import UserError, alone, atomic_file, fingerprint, progress, uniform

#: share of the training queries that become validation queries; the published test queries are left alone
VALIDATION = 0.1
#: gains of Exact, Substitute, Complement, Irrelevant in the ranking task of the set (Reddy et al., 2022, arXiv
#: 2206.06588; `esci_label2gain` in amazon-science/esci-data, ranking/train.py)
ESCI_GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
#: SQID's page: the address of 442 products is this picture, which shows none of them
NO_PICTURE = "https://m.media-amazon.com/images/G/01/digital/video/web/Default_Background_Art_LTR._SX1080_FMjpg_.jpg"

#: bytes read at least at a place of a remote file; the default, 5 MiB, would fetch the images between the words
BLOCK = 2**16


@dataclass(frozen=True)
class PublicSet:
    """A data set of the Hub and how its rows are read."""

    repository: str
    #: split -> its files in the repository
    files: Mapping[str, str]
    #: columns that are read of every row
    columns: tuple[str, ...]
    #: (rows as published, split) -> rows by makelib's names, with `unit`, which is drawn as a whole
    read: Callable[[pd.DataFrame, str], pd.DataFrame]
    notes: tuple[str, ...]
    #: column that names the product
    product: str = "product_id"
    #: what rows must meet, as `datasets` filters Parquet files
    only: tuple[tuple, ...] = ()
    #: column with the encoded images
    image: str | None = None
    #: column (`key` of the rows that are read) by which the files are ordered, so that images can be looked up in parts
    ordered: str | None = None
    #: or a repository with the addresses of images (`product_id`, `image_url`), and its files
    addresses: tuple[str, tuple[str, ...]] | None = None


# -- the sets ---------------------------------------------------------------------------------------------------------


def _fashion(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    named = rows.rename(columns={"id": "product_id", "productDisplayName": "title"})
    return named.assign(product_id=_text(rows["id"]), unit=_text(rows["id"]))


def _marqo(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    # a query is its text: nothing says that `query_id` counts the same way in all four splits
    ids = [f"q{hashlib.sha256(query.encode()).hexdigest()[:16]}" for query in _text(rows["query"])]
    label = pd.to_numeric(rows["score_linear"]) / 100
    return pd.DataFrame(
        {
            "product_id": _text(rows["product_id"]),
            "title": rows["title"],
            "query_id": ids,
            "query": rows["query"],
            "split": "test" if split in ("novel_query", "zero_shot") else "train",
            "label": label,
            "clicked": (label > 0.5) & (split != "novel_document"),
            "unit": ids,
            "key": rows["query_id"],
        }
    )


def _esci(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    label = rows["esci_label"].str[0].map(ESCI_GAINS)
    return pd.DataFrame(
        {
            "product_id": _text(rows["product_id"]),
            "title": rows["product_title"],
            "brand": rows["product_brand"],
            "colour": rows["product_color"],
            "query_id": _text(rows["query_id"]),
            "query": rows["query"],
            "split": split,
            "label": label,
            "clicked": label == 1,
            "unit": _text(rows["query_id"]),
        }
    )


SETS = {
    "fashion-product-images-small": PublicSet(
        repository="ashraq/fashion-product-images-small",
        files={"train": "data/train-*.parquet"},
        columns=(
            "id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "year", "usage",
            "productDisplayName",
        ),
        read=_fashion,
        notes=("Public data set ashraq/fashion-product-images-small: products with labels, no queries.",),
        product="id",
        image="image",
    ),
    "marqo-gs-10m": PublicSet(
        repository="Marqo/marqo-GS-10M",
        files={
            split: f"data/{split}-*.parquet" for split in ("in_domain", "novel_query", "novel_document", "zero_shot")
        },
        columns=("query", "product_id", "title", "score_linear", "query_id"),
        read=_marqo,
        notes=(
            "Public data set Marqo/marqo-GS-10M: whole queries with all their products. JUDGMENTS ARE RANKS: a product "
            "is as relevant as it stood high in one search engine's results (score_linear / 100); only the first is "
            "fully relevant, so Recall and MRR look for that one, and Rel and nDCG are the metrics to read.",
            "CLICKS ARE MADE OF RANKS: the upper half of the results (score_linear above 50) counts as clicked, but for "
            "products of the split novel_document, which training must not touch. HitRate is the share of these found.",
        ),
        image="image",
        ordered="query_id",
    ),
    "esci+sqid": PublicSet(
        repository="tasksource/esci",
        files={"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
        columns=(
            "query", "query_id", "product_id", "product_locale", "esci_label", "small_version", "product_title",
            "product_brand", "product_color",
        ),
        only=(("product_locale", "==", "us"), ("small_version", "==", 1)),
        read=_esci,
        notes=(
            "Public data sets tasksource/esci (locale us, reduced version) and crossingminds/"
            "shopping-queries-image-dataset: whole queries with all their products. People judged each pair: Exact 1, "
            "Substitute 0.1, Complement 0.01, Irrelevant 0. Products nobody judged for a query count as irrelevant to "
            "it, so levels are too low and nDCG@10 over the whole catalogue is not the ranking task's nDCG.",
            "SQID knows images for products of the test queries and some others, so most training products have none.",
            "CLICKS ARE MADE OF JUDGMENTS: every Exact pair counts as clicked, so that training has clicks; HitRate is "
            "the share of Exact products found, as Recall is.",
        ),
        addresses=(
            "crossingminds/shopping-queries-image-dataset",
            ("data/product_image_urls.parquet", "data/supp_product_image_urls.parquet"),
        ),
    ),
}  # fmt: skip


# -- from a name to a catalogue ---------------------------------------------------------------------------------------


def open_set(
    name: str, given: settings.Files | None = None, data: Path = Path("data"), out: Path | None = None
) -> Catalog:
    """The catalogue of a public data set, fetched and imported on first use.

    Args:
        name: one of `SETS`.
        given: `limit` and `seed` say how much is drawn, see `draw`; the rest is used where queries are generated.
        data: holds the catalogue, and in `hub/` what is fetched and, where the network is not to be used, copies of the
            repositories (`hub/<owner>/<name>` with the files as published).
        out: folder of the catalogue; None: under `data`, by name and settings.

    Raises `UserError` for an unknown name, and where neither the Hub nor a copy can be read.
    """
    given = given or settings.Files()
    if given.limit < 0:
        raise UserError(f"limit is a number of products, or 0 for all, not {given.limit}.")
    if name not in SETS:
        raise UserError(
            f"There is no public data set {name!r}; known: {', '.join(f'hub:{known}' for known in SETS)}. "
            "Anything else: download it and use `python -m makelib data import <folder>`."
        )
    target = Path(out or Path(data) / f"{name}-{fingerprint(name, dataclasses.asdict(given))}")
    if out is None and target.is_dir():
        return Catalog.open(target)
    with alone(target), alone(Path(data) / "hub" / name):  # sets that differ in queries only share what is fetched
        if out is None and target.is_dir():  # another process made it meanwhile
            return Catalog.open(target)
        return import_folder(fetch(name, given.limit, given.seed, Path(data)), target, given)


def fetch(name: str, limit: int = 0, seed: int = 0, data: Path = Path("data")) -> Path:
    """Fetch what is drawn of a public data set into a raw folder under `data/hub` and return that.

    Go on with what is there; images that got no answer are asked for again.
    """
    chosen, raw = SETS[name], Path(data) / "hub" / f"{name}-{fingerprint(name, limit, seed)}"
    place = _place(chosen.repository, name, data)
    rows, read = _rows(chosen, place, raw / ".rows", limit, seed)
    first = rows.drop_duplicates("product_id")
    images = _Images(raw)
    if chosen.image:
        _embedded(chosen, place, first, images)
    elif chosen.addresses:
        repository, tables = chosen.addresses
        fetching.fetch(_addresses(_place(repository, name, data), tables, set(first["product_id"])), images)
    judged = "query_id" in rows
    drawn = f"{len(first):,} products" + (f" of {rows['query_id'].nunique():,} queries" if judged else "")
    notes = [f"{drawn}, drawn with seed {seed}, of {read:,} rows read." if limit else f"All of it: {drawn}."]
    notes += [images.note(first["product_id"])]
    if judged:
        notes += [f"{VALIDATION:.0%} of the training queries, drawn with seed {seed}, are for validation."]
        _write(_queries(rows, seed), raw / "queries.parquet")
        _write(_interactions(rows), raw / "interactions.parquet")
    products = first.drop(columns=["unit", "key", "part", *_PAIR], errors="ignore")
    _write(products.assign(image=[images.cell(key) for key in products["product_id"]]), raw / "products.parquet")
    # what was drawn is the catalogue, so the import must not draw again
    told = {"name": name, "limit": 0, "notes": [*chosen.notes, *notes]}
    with atomic_file(raw / "catalogue.yaml") as draft:
        draft.write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return raw


_PAIR = ("query_id", "query", "split", "label", "clicked")


def _queries(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    queries = rows.drop_duplicates("query_id")[["query_id", "query", "split"]]
    held = np.array([_order(seed, f"validation {key}") < VALIDATION for key in queries["query_id"]])
    return queries.assign(split=queries["split"].mask((queries["split"] == "train") & held, "validation"))


def _interactions(rows: pd.DataFrame) -> pd.DataFrame:
    pairs = rows[["query_id", "product_id", "label"]]
    return pd.concat(
        [pairs.assign(kind="judgment"), pairs[rows["clicked"]].assign(label=1.0, kind="click")], ignore_index=True
    )


def _write(table: pd.DataFrame, path: Path) -> None:
    with atomic_file(path) as draft:
        table.to_parquet(draft, index=False)


def _text(column: pd.Series) -> pd.Series:
    return column.astype("string").fillna("")


# -- rows -------------------------------------------------------------------------------------------------------------


def draw(rows: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    """The rows of so many whole units that they have at most `limit` products between them; 0: all rows.

    Units (a query with all its products; a product where there are no queries) come in the order of a digest of seed and
    unit, one at least. A unit is drawn or not whatever file its rows are in, so a draw from the draws of parts is
    the draw from the whole.
    """
    if not limit or rows.empty:
        return rows
    units, names = pd.factorize(rows["unit"])
    rank = np.argsort(np.argsort([_order(seed, name) for name in names], kind="stable"))[units]
    ordered = rows["product_id"].iloc[np.argsort(rank, kind="stable")]
    new = (~ordered.duplicated()).to_numpy()
    products = np.cumsum(np.bincount(np.sort(rank), weights=new))  # of the first units, by rank
    return rows[rank < max(1, int((products <= limit).sum()))]


def _order(seed: int, name: str) -> float:
    """A number in [0, 1) for each name; not the one by which `files` chooses terse sellers from the same seed."""
    return uniform(f"hub {seed} {name}")


def _rows(chosen: PublicSet, place: str, parts: Path, limit: int, seed: int) -> tuple[pd.DataFrame, int]:
    """The drawn rows in the order of the files, `part` (split, number) says which, and how many rows were read."""
    with _reading(place):
        streams = {split: _stream(place, names, chosen.columns, chosen.only) for split, names in chosen.files.items()}
    shards = [(split, number) for split, stream in streams.items() for number in range(stream.num_shards)]

    def one(part: tuple[str, int]) -> pd.DataFrame:
        split, number = part
        path = parts / f"{split}-{number}-of-{streams[split].num_shards}.parquet"
        if not path.is_file():
            shard = streams[split].shard(streams[split].num_shards, number).with_format("arrow")
            tables = [chosen.read(table.to_pandas(integer_object_nulls=True), split) for table in shard.iter(10_000)]
            whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
            rows = draw(whole, limit, seed)
            rows.attrs["read"] = len(whole)
            _write(rows, path)
        return pd.read_parquet(path)

    with _reading(place), concurrent.futures.ThreadPoolExecutor(fetching.CONNECTIONS) as pool:
        found = list(progress(pool.map(one, shards), description="rows", total=len(shards), unit="file"))
    read = sum(rows.attrs["read"] for rows in found)
    if not read:
        raise UserError(f"{place} holds no row of {chosen.repository} that is wanted.")
    whole = [rows.assign(part=[part] * len(rows)) for part, rows in zip(shards, found, strict=True) if len(rows)]
    return draw(pd.concat(whole, ignore_index=True), limit, seed), read


def _stream(
    place: str, pattern: str | Sequence[str], columns: Sequence[str], only: Sequence[tuple]
) -> datasets.IterableDataset:
    return datasets.load_dataset(
        place, data_files=pattern, split="train", streaming=True, columns=list(columns), filters=list(only) or None,
        storage_options={"hf": {"block_size": BLOCK}},
    )  # fmt: skip


def _place(repository: str, name: str, data: Path) -> str:
    """The local copy of a repository, else its name on the Hub. Raises `UserError` at once where neither is there."""
    copy = data / "hub" / repository
    if copy.is_dir():
        return str(copy)
    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=10)
    except Exception as error:  # the client's transports raise errors of their own
        raise UserError(
            f"hub:{name} needs the data set {repository}, which is neither in {copy} nor to be had from "
            f"{huggingface_hub.constants.ENDPOINT} ({type(error).__name__}). With a network: `hf download {repository} "
            f"--repo-type dataset --local-dir {copy}`, then copy that folder here."
        ) from None
    return repository


@contextlib.contextmanager
def _reading(place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # the Hub's client passes on errors of its transport, which have no common base with others
        known = (OSError, ValueError, KeyError, pa.ArrowException)
        if not isinstance(error, known) and not type(error).__module__.startswith("httpx"):
            raise
        lines = str(error).splitlines() or [""]
        raise UserError(
            f"Cannot read {place}: {type(error).__name__}: {lines[0].rstrip('.')}. What was fetched is kept; run the "
            "same again to go on."
        ) from error


# -- images -----------------------------------------------------------------------------------------------------------


class _Images(fetching.Store):
    """The images of a raw folder."""

    def __init__(self, raw: Path) -> None:
        super().__init__(raw / "images", raw / "missing.jsonl")

    def cell(self, product: str) -> str:
        """What the products table says."""
        return f"images/{self.path(product).name}" if self.path(product).is_file() else ""

    def note(self, products: Sequence[str]) -> str:
        here = sum(self.path(key).is_file() for key in products)
        reasons = Counter(self.missing[key] for key in products if key in self.missing)
        rest = len(products) - here - reasons.total()
        if rest:
            reasons["none published"] += rest
        why = f": {', '.join(f'{reason} {count:,}' for reason, count in reasons.most_common())}" if reasons else ""
        return f"IMAGES: {here:,} of {len(products):,} products have one; the others keep their title{why}."


def _embedded(chosen: PublicSet, place: str, first: pd.DataFrame, images: _Images) -> None:
    """Write the images of products from the files that hold their first drawn rows."""
    rows = first[[images.lacks(product) for product in first["product_id"]]]
    streams = {}
    for split, wanted in rows.groupby(rows["part"].str[0]):
        only = [(chosen.ordered, "in", wanted["key"].unique().tolist())] if chosen.ordered else []
        columns = [name for name in (chosen.product, chosen.image, chosen.ordered) if name]
        with _reading(place):
            streams[split] = _stream(place, chosen.files[split], columns, only)
    bar = progress(description="images", total=len(rows), unit="img")

    def one(part: tuple[str, int]) -> None:
        stream, wanted = streams[part[0]], set(rows["product_id"][rows["part"] == part])
        for row in stream.cast_column(chosen.image, datasets.Image(decode=False)).shard(stream.num_shards, part[1]):
            product = str(row[chosen.product])
            if product in wanted:
                wanted.remove(product)
                data = (row[chosen.image] or {}).get("bytes")
                images.keep(product, data) if data else images.miss(product, "none published")
                bar.update()
            if not wanted:
                return

    with _reading(place), concurrent.futures.ThreadPoolExecutor(fetching.CONNECTIONS) as pool:
        for _ in pool.map(one, rows["part"].unique()):
            pass
    bar.close()


def _addresses(place: str, tables: Sequence[str], products: set[str]) -> dict[str, str]:
    with _reading(place):
        rows = _stream(place, list(tables), ("product_id", "image_url"), [("product_id", "in", list(products))])
        found = {row["product_id"]: row["image_url"] for row in rows}
    return {product: url for product, url in found.items() if url and url != NO_PICTURE}
