"""`makelib.data.sources.hub`: what must hold when a public data set becomes a catalogue. No test touches the network.

- each of the three sets is read from files in exactly the public layout, judgments, clicks and splits as documented
- a draw takes whole queries, the same ones for the same seed, whatever file their rows are in
- a fetch that is killed goes on where it was and ends in the same catalogue
- an image that is broken, absent or refused costs the image only and is counted
- without a network and without a copy there is one line, at once
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from makelib.data.sources import fetch as fetching
from makelib.data.sources import hub, open_catalog
from makelib.runtime import UserError
from makelib.settings import Files, preset

FASHION, MARQO, ESCI = "fashion-product-images-small", "marqo-gs-10m", "esci+sqid"
SQID = "crossingminds/shopping-queries-image-dataset"
ALL = Files(limit=0)


def jpeg(number: int) -> bytes:
    """A picture of its own for each number."""
    random = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 255, (8, 6, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder: Path, name: str, rows: list[dict], features: dict[str, object]) -> None:
    path = folder / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {column: [row[column] for row in rows] for column in features}
    typed = {column: kind if not isinstance(kind, str) else datasets.Value(kind) for column, kind in features.items()}
    datasets.Dataset.from_dict(columns, features=datasets.Features(typed)).to_parquet(path, batch_size=7)


def card(folder: Path, yaml: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{yaml}---\n# Dataset Card\n", encoding="utf-8")


# -- copies in the public layout --------------------------------------------------------------------------------------

TYPES, COLOURS = ("Tshirts", "Heels", "Watches", "Kurtas"), ("Navy Blue", "Red", "Black", "White", "Green")


def fashion(data: Path, count: int = 120, images: dict[int, object] | None = None) -> Path:
    """Two shards. `images` puts something else in the place of a product's image."""
    folder = data / "hub" / "ashraq" / FASHION
    labels = ("gender", "masterCategory", "subCategory", "articleType", "baseColour", "season")
    features = {"id": "int64", **dict.fromkeys(labels, "string"), "year": "float64", "usage": "string"}
    features |= {"productDisplayName": "string", "image": datasets.Image()}
    rows = []
    for number in range(count):
        kind, colour = TYPES[number % 4], COLOURS[number % 5]
        image = {"bytes": jpeg(number), "path": None}
        rows.append(
            {
                "id": 1000 + number,
                "gender": "Men",
                "masterCategory": "Apparel",
                "subCategory": "Topwear",
                "articleType": kind,
                "baseColour": colour,
                "season": None if number == 3 else "Summer",
                "year": 2011.0,
                "usage": "Casual",
                "productDisplayName": f"Seller Men {colour} {kind} {number}",
                "image": (images or {}).get(number, image),
            }
        )
    write(folder, "train-00000-of-00002-6cff4c59f91661c3", rows[: count // 2], features)
    write(folder, "train-00001-of-00002-bb459e5ac5f01e71", rows[count // 2 :], features)
    card(folder, "dataset_info:\n  features:\n  - name: id\n    dtype: int64\n  splits:\n  - name: train\n")
    return folder


def marqo(data: Path, queries: int = 20, per_query: int = 6) -> Path:
    """`queries` queries, every fifth of them new, over products of which every second is new; rows by query.

    Query i ranks the products 3 i to 3 i + `per_query` - 1, so that most products belong to two queries. `query_id`
    counts anew in each split, the worst that can be.
    """
    folder = data / "hub" / "Marqo" / "marqo-GS-10M"
    features = {"image": datasets.Image(), "query": "string", "product_id": "string", "position": "int64"}
    features |= {"title": "string", "pair_id": "string", "score_linear": "int64", "score_reciprocal": "float64"}
    features |= {"no_score": "int64", "query_id": "string"}
    splits: dict[str, list[dict]] = {name: [] for name in ("in_domain", "novel_query", "novel_document", "zero_shot")}
    for query in range(queries):
        for position in range(1, per_query + 1):
            product = 3 * query + position - 1
            name = (("in_domain", "novel_document"), ("novel_query", "zero_shot"))[query % 5 == 4][product % 2]
            score = 100 if position == 1 else 100 - 15 * (position - 1)
            splits[name].append(
                {
                    "image": {"bytes": jpeg(product), "path": None},
                    "query": f"want {query}",
                    "product_id": f"{14000000000000000000 + product}",
                    "position": position,
                    "title": f"Thing {product}",
                    "pair_id": f"{query}-{product}",
                    "score_linear": score,
                    "score_reciprocal": 1 / position,
                    "no_score": 1,
                    "query_id": "",
                }
            )
    for name, rows in splits.items():
        ids = {query: str(number) for number, query in enumerate(dict.fromkeys(row["query"] for row in rows))}
        rows = [row | {"query_id": ids[row["query"]]} for row in rows]
        middle = len(rows) // 2 + 1  # in the midst of a query
        write(folder, f"{name}-0", rows[:middle], features)
        write(folder, f"{name}-1", rows[middle:], features)
    configs = "".join(f"      - split: {name}\n        path: data/{name}-*\n" for name in splits)
    card(folder, f"license: apache-2.0\nconfigs:\n  - config_name: default\n    data_files:\n{configs}")
    return folder


def esci(data: Path, addresses: dict[str, str], queries: int = 20, per_query: int = 5) -> Path:
    """`queries` queries, every fourth of them for testing. Query i: products 2 i (E), 2 i + 1 (S), … (C), (I), (E)."""
    folder = data / "hub" / "tasksource" / "esci"
    features = {"example_id": "int64", "query": "string", "query_id": "int64", "product_id": "string"}
    features |= {"product_locale": "string", "esci_label": "string", "small_version": "int64", "large_version": "int64"}
    texts = ("title", "description", "bullet_point", "brand", "color", "text")
    features |= {f"product_{name}": "string" for name in texts}
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for query in range(queries):
        names = ("Exact", "Substitute", "Complement", "Irrelevant", "Exact")[:per_query]
        pairs = [(2 * query + step, name, "us", 1) for step, name in enumerate(names)]
        pairs += [(900 + query, "Exact", "us", 0), (950 + query, "Exact", "jp", 1)]  # not wanted
        for product, label, locale, small in pairs:
            splits["test" if query % 4 == 3 else "train"].append(
                {
                    "example_id": len(splits["train"]),
                    "query": f"need {query}" if locale == "us" else f"欲しい {query}",
                    "query_id": query if locale == "us" else 5000 + query,
                    "product_id": f"B{product:03d}",
                    "product_locale": locale,
                    "esci_label": label,
                    "small_version": small,
                    "large_version": 1,
                    "product_title": f"Goods {product}",
                    "product_description": None,
                    "product_bullet_point": "many words",
                    "product_brand": "Acme" if product % 2 else None,
                    "product_color": "Red",
                    "product_text": "many words",
                }
            )
    for name, rows in splits.items():
        middle = len(rows) // 2 + 1
        write(folder, f"{name}-00000-of-00002-d48474212b95f33b", rows[:middle], features)
        write(folder, f"{name}-00001-of-00002-b7602f1b5c136953", rows[middle:], features)
    card(folder, "license: apache-2.0\n")
    pictures, both = data / "hub" / SQID, {"product_id": "string", "image_url": "string"}
    rows = [{"product_id": product, "image_url": url} for product, url in addresses.items()]
    write(pictures, "product_image_urls", rows[::2], both)
    write(pictures, "supp_product_image_urls", rows[1::2], both)
    write(pictures, "query_features", [{"query_id": "1", "f": 0.5}], {"query_id": "string", "f": "float32"})
    tables = ("product_image_urls", "query_features", "supp_product_image_urls")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: data/{name}.parquet\n" for name in tables
    )
    card(pictures, f"license: mit\nconfigs:\n{configs}")
    return folder


@contextlib.contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def shop(answers=None):
    """A server of images on this machine: `/<number>` is `jpeg(number)`. `answers` (path -> handler) come first.

    Yields its address and the paths that were asked for, counted.
    """
    asked: Counter[str] = Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            if answers and self.path in answers:
                answers[self.path](self, asked[self.path])
            else:
                reply(self, 200, jpeg(int(self.path[1:])))

        def log_message(self, *_):
            pass

    with served(Handler) as address:
        yield address, asked


def reply(handler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Nothing may reach the Hub: what is not in a copy fails at once."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(fetching, "fetch", functools.partial(fetching.fetch, allow=("127.0.0.1",)))


def content(folder: Path) -> dict[str, str]:
    """Digests of all that a folder holds for others (names that begin with a dot are its own business)."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def labels_of(catalog, kind: str) -> dict[tuple[str, str], float]:
    table = catalog.interactions[catalog.interactions["kind"] == kind]
    texts = catalog.queries["query"].to_numpy()[table["query"]]
    titles = catalog.products["title"].to_numpy()[table["product"]]
    return dict(zip(zip(texts, titles, strict=True), table["label"].round(3).tolist(), strict=True))


# -- fashion ----------------------------------------------------------------------------------------------------------


def test_fashion_becomes_a_catalogue_with_labels_and_generated_queries(tmp_path):
    fashion(tmp_path)
    catalog = open_catalog(f"hub:{FASHION}", preset("smoke").replace(**{"files.limit": 0}), tmp_path)
    assert catalog.name == FASHION
    assert len(catalog) == 120
    assert catalog.products["product_id"].tolist()[:2] == ["1000", "1001"]
    assert catalog.products["category"].tolist()[:2] == ["Tshirts", "Heels"]
    assert catalog.attributes["baseColour"][0] == "Navy Blue"
    assert catalog.info["generated_queries"]
    assert catalog.info["notes"][0].startswith("GENERATED QUERIES")
    assert any(note.startswith("TERSE SELLERS") for note in catalog.info["notes"])
    assert any("ashraq/fashion-product-images-small" in note for note in catalog.info["notes"])
    for row in (0, 59, 60, 119):  # pixels of both shards, each beside its own product
        assert np.array_equal(np.asarray(catalog.image(row)), np.asarray(Image.open(io.BytesIO(jpeg(row)))))


def test_a_broken_or_absent_image_costs_the_image_only(tmp_path):
    fashion(tmp_path, images={7: {"bytes": b"\xff\xd8 no picture", "path": None}, 8: None})
    catalog = hub.open_set(FASHION, Files(limit=0, queries=50, clicks=200), tmp_path)
    assert len(catalog) == 120
    assert catalog.image(7) is None
    assert catalog.image(8) is None
    assert catalog.image(9) is not None
    (line,) = pd.read_csv(catalog.folder / "quarantine.csv").to_dict("records")
    assert (line["product_id"], line["action"]) == (1007, "image dropped")
    assert (
        "IMAGES: 119 of 120 products have one; the others keep their title: none published 1."
        in (catalog.info["notes"])
    )


def test_a_catalogue_that_is_there_is_opened_without_its_source(tmp_path):
    folder = fashion(tmp_path)
    first = hub.open_set(FASHION, Files(limit=60), tmp_path)
    folder.rename(tmp_path / "elsewhere")
    assert hub.open_set(FASHION, Files(limit=60), tmp_path).fingerprint == first.fingerprint


# -- draws ------------------------------------------------------------------------------------------------------------


def test_two_that_open_the_same_set_at_once(tmp_path):
    """One fetches and imports, the other says that it waits."""
    fashion(tmp_path)
    code = "import sys; from makelib.data.sources import hub; from makelib.settings import Files; from pathlib import Path; hub.open_set(sys.argv[1], Files(limit=60, queries=50, clicks=200), Path(sys.argv[2]))"
    alone = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    both = [
        subprocess.Popen([sys.executable, "-c", code, FASHION, tmp_path], env=alone, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [one.communicate(timeout=60)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert sum("Another process is making" in errors for errors in told) == 1


def test_a_draw_depends_on_seed_and_size_only(tmp_path):
    fashion(tmp_path)
    ids = {}
    for seed, limit in ((0, 40), (1, 40), (0, 80)):
        raw = hub.fetch(FASHION, limit, seed, tmp_path)
        ids[seed, limit] = pd.read_parquet(raw / "products.parquet")["product_id"].tolist()
        assert len(ids[seed, limit]) == limit
        assert ids[seed, limit] == sorted(ids[seed, limit])  # the order of the files
    assert ids[0, 40] != ids[1, 40]
    assert set(ids[0, 40]) < set(ids[0, 80])
    assert hub.fetch(FASHION, 40, 0, tmp_path) != hub.fetch(FASHION, 40, 1, tmp_path)


def test_what_is_drawn_says_nothing_about_who_is_terse(tmp_path):
    fashion(tmp_path, 600)
    shares = [hub.open_set(FASHION, Files(limit=150, seed=seed), tmp_path).info["hidden"]["terse"] for seed in (0, 1)]
    assert all(0.55 < share < 0.85 for share in shares)  # 0.7 is asked for


@pytest.mark.parametrize("limit", [1, 7, 30, 59, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_draw_from_draws_of_parts_is_the_draw_from_the_whole(limit, seed):
    random = np.random.default_rng(seed)
    rows = pd.DataFrame({"unit": random.integers(0, 25, 200).astype(str), "product_id": random.integers(0, 60, 200)})
    drawn = hub.draw(rows, limit, seed)
    parts = [hub.draw(rows.iloc[part], limit, seed) for part in np.array_split(np.arange(200), 7)]
    pd.testing.assert_frame_equal(hub.draw(pd.concat(parts), limit, seed), drawn)
    assert drawn["product_id"].nunique() <= limit or drawn["unit"].nunique() == 1
    units = rows[rows["unit"].isin(drawn["unit"])]
    pd.testing.assert_frame_equal(units, drawn)  # whole units
    more = hub.draw(rows, limit + 15, seed)
    assert set(drawn["unit"]) <= set(more["unit"])


@pytest.mark.parametrize(("name", "make"), [(MARQO, marqo), (ESCI, lambda data: esci(data, {}))])
def test_judged_sets_are_drawn_by_whole_queries(name, make, tmp_path):
    make(tmp_path)
    every = labels_of(hub.open_set(name, ALL, tmp_path), "judgment")
    some = hub.open_set(name, Files(limit=25), tmp_path)
    assert 0 < len(some) <= 25
    assert 1 < len(some.queries) < 20
    kept = set(some.queries["query"])
    assert labels_of(some, "judgment") == {pair: label for pair, label in every.items() if pair[0] in kept}


# -- marqo ------------------------------------------------------------------------------------------------------------


def test_marqo_ranks_become_judgments_and_its_four_splits_the_four_cells(tmp_path):
    marqo(tmp_path)
    catalog = hub.open_set(MARQO, ALL, tmp_path)
    assert len(catalog) == 63
    assert len(catalog.queries) == 20
    assert not catalog.info["generated_queries"]
    judged = labels_of(catalog, "judgment")
    assert len(judged) == 120
    assert judged["want 2", "Thing 6"] == 1
    assert judged["want 2", "Thing 7"] == pytest.approx(0.85)
    assert judged["want 2", "Thing 11"] == pytest.approx(0.25)

    split = dict(zip(catalog.queries["query"], catalog.queries["split"], strict=True))
    new = {f"want {query}" for query in range(4, 20, 5)}
    assert {query for query, name in split.items() if name == "test"} == new
    assert "train" in split.values()
    clicks = labels_of(catalog, "click")
    even = {title for _, title in judged if int(title.split()[1]) % 2 == 0}  # the products of in_domain, novel_query
    expected = {pair for pair, label in judged.items() if label > 0.5 and (pair[1] in even or pair[0] in new)}
    assert set(clicks) == expected
    assert set(clicks.values()) == {1.0}

    row = catalog.queries["query"].tolist().index("want 4")
    relevance = catalog.relevance(np.array([row]))[0]
    titles = catalog.products["title"].tolist()
    assert relevance[titles.index("Thing 12")] == 1
    assert relevance[titles.index("Thing 13")] == pytest.approx(0.85)
    assert relevance.sum() == pytest.approx(1 + 0.85 + 0.7 + 0.55 + 0.4 + 0.25)
    for product, title in enumerate(titles):
        shown = Image.open(io.BytesIO(jpeg(int(title.split()[1]))))
        assert np.array_equal(np.asarray(catalog.image(product)), np.asarray(shown))
    # products of the new half are touched by no training click: they stay cold
    assert not catalog.seen[[titles.index(title) for title in titles if title not in even]].any()


# -- esci and sqid ----------------------------------------------------------------------------------------------------


def test_esci_judgments_have_the_gains_of_the_task_and_sqid_its_images(tmp_path):
    with shop() as (address, asked):
        esci(tmp_path, {f"B{product:03d}": f"{address}/{product}" for product in range(0, 30)} | {"B999": "no matter"})
        catalog = hub.open_set(ESCI, ALL, tmp_path)
    assert set(asked) == {f"/{product}" for product in range(30)}
    assert set(asked.values()) == {1}
    assert len(catalog) == 43  # none of another locale or of the large version alone
    assert len(catalog.queries) == 20
    assert not catalog.info["generated_queries"]
    judged = labels_of(catalog, "judgment")
    assert [judged["need 5", f"Goods {product}"] for product in range(10, 15)] == pytest.approx([1, 0.1, 0.01, 0, 1])
    clicks = labels_of(catalog, "click")
    assert set(clicks) == {pair for pair, label in judged.items() if label == 1}
    split = dict(zip(catalog.queries["query"], catalog.queries["split"], strict=True))
    assert {query for query, name in split.items() if name == "test"} == {f"need {q}" for q in range(3, 20, 4)}
    assert len(catalog.clicks("train")[0]) == 2 * list(split.values()).count("train")

    row = catalog.queries["query"].tolist().index("need 5")
    relevance = dict(zip(catalog.products["title"], catalog.relevance(np.array([row]))[0].tolist(), strict=True))
    graded = {title: round(value, 3) for title, value in relevance.items() if value}
    assert graded == {"Goods 10": 1, "Goods 11": 0.1, "Goods 12": 0.01, "Goods 14": 1}
    for product, title in enumerate(catalog.products["title"]):
        number, image = int(title.split()[1]), catalog.image(product)
        assert (image is not None) == (number < 30)
        if image is not None:
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(jpeg(number)))))
    assert (
        "IMAGES: 30 of 43 products have one; the others keep their title: none published 13." in (catalog.info["notes"])
    )


def test_images_that_cannot_be_had_are_counted_and_products_keep_their_title(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_BYTES", 5000)

    def later(handler, times):
        reply(handler, *((429, b"") if times == 1 else (200, jpeg(1))), Retry_After="0")

    answers = {
        "/0": lambda handler, _: reply(handler, 404),
        "/1": later,
        "/2": lambda handler, _: reply(handler, 200, bytes(5001)),
        "/3": lambda handler, _: reply(handler, 200, b"<html>no image here</html>"),
        "/4": lambda handler, _: handler.connection.close(),
    }
    with shop(answers) as (address, asked):
        urls = {f"B{product:03d}": f"{address}/{product}" for product in range(43)}
        esci(
            tmp_path,
            urls | {"B005": "nowhere", "B006": hub.NO_PICTURE, "B007": "file:///etc/passwd", "B008": "http://[a"},
        )
        catalog = hub.open_set(ESCI, ALL, tmp_path)
    assert len(catalog) == 43
    present = {title for row, title in enumerate(catalog.products["title"]) if catalog.image(row) is not None}
    assert {f"Goods {number}" for number in range(43)} - present == {f"Goods {n}" for n in (0, 2, 3, 4, 5, 6, 7, 8)}
    assert asked["/0"] == 1
    assert asked["/1"] == 2
    (note,) = [note for note in catalog.info["notes"] if note.startswith("IMAGES")]
    for reason in (
        "no address 3",
        "status 404 1",
        "larger than 0 MiB 1",
        "none published 1",
        "ConnectionError 1",
        "is not an image 1",
    ):
        assert reason in note


def test_a_host_that_is_down_is_left_alone_and_asked_again_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 3)
    with shop() as (address, _):
        pass  # its port answers nobody now
    esci(tmp_path, {f"B{product:03d}": f"{address}/{product}" for product in range(43)})
    tried = Counter()
    get = fetching.get
    monkeypatch.setattr(fetching, "get", lambda session, url, allow: (tried.update([url]), get(session, url, allow))[1])
    raw = hub.fetch(ESCI, 0, 0, tmp_path)
    assert 3 <= len(tried) < 3 + 2 * fetching.CONNECTIONS
    assert not any((raw / "images").iterdir())
    tried.clear()
    hub.fetch(ESCI, 0, 0, tmp_path)
    assert len(tried) >= 3


# -- going on ---------------------------------------------------------------------------------------------------------

KILLED = """
import functools, os, sys
import datasets, huggingface_hub
from pathlib import Path
from makelib.data.sources import fetch, hub
fetch.fetch = functools.partial(fetch.fetch, allow=("127.0.0.1",))
data, name, limit, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
done = 0
def counted(function):
    def call(*arguments, **options):
        global done
        function(*arguments, **options)
        done += 1
        if done >= after:
            os.kill(os.getpid(), 9)
    return call
hub._write, hub._Images.keep = counted(hub._write), counted(hub._Images.keep)
hub.fetch(name, limit, 0, data)
"""


@pytest.mark.parametrize("after", [1, 9, 20])
@pytest.mark.parametrize("name", [FASHION, MARQO, ESCI])
def test_a_killed_fetch_goes_on_and_ends_in_the_same_folder(name, after, tmp_path, monkeypatch):
    with shop() as (address, _):
        folders = [tmp_path / "killed", tmp_path / "whole"]
        for data in folders:
            fashion(data)
            marqo(data)
            esci(data, {f"B{product:03d}": f"{address}/{product}" for product in range(43)})
        killed, whole = folders
        code = subprocess.run(
            [sys.executable, "-c", KILLED, str(killed), name, "30", str(after)],
            capture_output=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            timeout=120,
        )
        assert code.returncode == -9, code.stderr.decode()
        before = {path for path in killed.rglob("*") if path.is_file() and path.parent.name in (".rows", "images")}
        stamps = {path: path.stat().st_mtime_ns for path in before if not path.name.startswith(".")}
        assert stamps
        went_on = hub.fetch(name, 30, 0, killed)
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())  # nothing was fetched twice
        at_once = hub.fetch(name, 30, 0, whole)
        assert content(went_on) == content(at_once)


def test_a_second_fetch_asks_for_nothing(tmp_path, monkeypatch):
    with shop({"/0": lambda handler, _: reply(handler, 404)}) as (address, asked):
        esci(tmp_path, {f"B{product:03d}": f"{address}/{product}" for product in range(43)})
        raw = hub.fetch(ESCI, 0, 0, tmp_path)
        before = content(raw)
        with open(raw / "missing.jsonl", "a") as lines:
            lines.write('{"B00')  # cut off
        monkeypatch.setattr(hub._Images, "keep", lambda *_: pytest.fail("fetched again"))
        hub.fetch(ESCI, 0, 0, tmp_path)
    assert set(asked.values()) == {1}
    assert {k: v for k, v in content(raw).items() if k != "missing.jsonl"} == {
        k: v for k, v in before.items() if k != "missing.jsonl"
    }


# -- the Hub ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def imitation(root: Path):
    """The few answers of the Hub's interface that reading Parquet files takes. Yields its address and, by file, how many
    bytes were read of it."""
    read: Counter[str] = Counter()
    commit = "0" * 40

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            found = re.match(r"/(api/datasets|datasets)/([^/]+)/([^/]+)(.*)", path)
            kind, owner, name, rest = found.groups() if found else ("", "", "", "")
            folder = root / owner / name
            names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file()]
            if kind == "api/datasets" and "/tree/" in rest:
                inside = f"{rest.split('/', 3)[3]}/" if rest.count("/") > 2 else ""
                sizes = {file: (folder / file).stat().st_size for file in names if file.startswith(inside)}
                listed = [{"type": "file", "oid": file, "path": file, "size": size} for file, size in sizes.items()]
                listed += [{"type": "directory", "oid": "data", "path": "data"}] if not inside else []
                self.answer(200, json.dumps(listed).encode())
            elif kind == "api/datasets":
                about = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": name} for name in names]}
                self.answer(200, json.dumps(about).encode())
            elif not (kind and (folder / rest.split("/", 3)[3]).is_file()):
                self.answer(404, b"", X_Error_Code="EntryNotFound")
            else:
                data = (folder / rest.split("/", 3)[3]).read_bytes()
                first, last = 0, len(data) - 1
                if span := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or ""):
                    first, last = int(span[1]), min(int(span[2]), last)
                    read[rest.split("/")[-1]] += last + 1 - first
                self.answer(
                    206 if span else 200, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}"
                )

        def answer(self, status, body, **headers):
            about = {"Content-Length": str(len(body)), "ETag": '"x"', "X-Repo-Commit": commit, **headers}
            reply(self, status, body if self.command == "GET" else b"", **about)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with served(Handler) as address:
        yield address, read


@pytest.mark.parametrize("name", list(hub.SETS))
def test_the_hub_gives_what_a_copy_gives(name, tmp_path):
    with shop() as (pictures, _):
        for make in (fashion, marqo, lambda data: esci(data, {f"B{n:03d}": f"{pictures}/{n}" for n in range(43)})):
            make(tmp_path)
        here = hub.fetch(name, 30, 0, tmp_path)
        with imitation(tmp_path / "hub") as (address, read):
            code = (
                "import functools, sys; from pathlib import Path; from makelib.data.sources import fetch, hub; "
                "fetch.fetch = functools.partial(fetch.fetch, allow=('127.0.0.1',)); "
            )
            shown = subprocess.run(
                [sys.executable, "-c", code + "print(hub.fetch(sys.argv[1], 30, 0, Path('data')))", name],
                capture_output=True, text=True, cwd=tmp_path, timeout=120,
                env={**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
                     "PYTHONPATH": str(Path(__file__).parents[3])},
            )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert read
    assert content(tmp_path / shown.stdout.strip()) == content(here)


def test_words_are_read_without_the_images_between_them(tmp_path, monkeypatch):
    large = [np.random.default_rng(number).bytes(200_000) for number in range(70)]
    monkeypatch.setattr(sys.modules[__name__], "jpeg", large.__getitem__)
    marqo(tmp_path)
    with imitation(tmp_path / "hub") as (address, read):
        code = (
            "import datasets; from makelib.data.sources import hub; marqo = hub.SETS['marqo-gs-10m']\n"
            "for split, names in marqo.files.items():\n"
            "    print(sum(1 for _ in hub._stream(marqo.repository, names, marqo.columns, ())))"
        )
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120,
            env={**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
                 "PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
    assert sum(map(int, shown.stdout.split())) == 120, shown.stderr
    files = {file.name: file.stat().st_size for file in (tmp_path / "hub").rglob("in_domain-*.parquet")}
    assert sum(read[name] for name in files) < 0.3 * sum(files.values())


# -- what cannot be had -----------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"no public data set 'shoes'.*hub:fashion.*hub:marqo-gs-10m.*hub:esci\+sqid"):
        open_catalog("hub:shoes", preset("smoke"), tmp_path)


@pytest.mark.parametrize("name", list(hub.SETS))
@pytest.mark.parametrize("how", [{"HF_HUB_OFFLINE": "1"}, {"HF_DATASETS_OFFLINE": "1"}, {}])
def test_without_network_and_copy_there_is_one_line_at_once(name, how, tmp_path):
    dead = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(Path(__file__).parents[3])}
    dead.pop("HF_HUB_OFFLINE", None)
    shown = subprocess.run(
        [sys.executable, "-m", "makelib", "data", "hub", name, "--limit", "10"],
        capture_output=True, text=True, cwd=tmp_path, env=dead | how, timeout=60,
    )  # fmt: skip
    assert shown.returncode == 2, shown.stderr
    assert shown.stdout == ""
    assert shown.stderr.count("\n") == 1
    repository = hub.SETS[name].repository
    assert f"hf download {repository} --repo-type dataset --local-dir data/hub/{repository}" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_second_repository_that_is_missing_is_named(tmp_path):
    esci(tmp_path, {})
    (tmp_path / "hub" / SQID).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"needs the data set {SQID}.*hf download {SQID} --repo-type dataset"):
        hub.open_set(ESCI, ALL, tmp_path)


def test_a_file_without_a_wanted_row_is_no_trouble_and_none_at_all_is_one_line(tmp_path):
    folder = esci(tmp_path, {})
    first, *others = sorted((folder / "data").iterdir())
    table = pd.read_parquet(first)
    table.assign(product_locale="jp").to_parquet(first)
    catalog = hub.open_set(ESCI, ALL, tmp_path)
    assert len(labels_of(catalog, "judgment")) < 100
    assert len(catalog.clicks("train")[0]) > 0
    for path in others:
        pd.read_parquet(path).assign(product_locale="jp").to_parquet(path)
    with pytest.raises(UserError, match="holds no row of tasksource/esci that is wanted"):
        hub.open_set(ESCI, Files(limit=9), tmp_path)


def test_a_copy_that_lacks_files_or_columns_is_one_line(tmp_path):
    folder = fashion(tmp_path)
    shards = sorted((folder / "data").iterdir())
    pd.read_parquet(shards[0]).drop(columns="baseColour").to_parquet(shards[0])
    with pytest.raises(UserError, match=r"Cannot read .*fashion-product-images-small.*run the same again"):
        hub.fetch(FASHION, 10, 0, tmp_path)
    for shard in shards:
        shard.unlink()
    with pytest.raises(UserError, match=r"Cannot read .*fashion-product-images-small"):
        hub.fetch(FASHION, 11, 0, tmp_path)


def test_rows_without_product_query_or_label_go_into_quarantine(tmp_path):
    folder = esci(tmp_path, {})
    path = sorted((folder / "data").iterdir())[0]
    table = pd.read_parquet(path)
    table.loc[0, "product_id"] = None
    table.loc[1, "esci_label"] = "Perhaps"
    table.to_parquet(path)
    catalog = hub.open_set(ESCI, ALL, tmp_path)
    reasons = Counter(pd.read_csv(catalog.folder / "quarantine.csv")["reason"].str.split(" (", regex=False).str[0])
    assert reasons["has no id"] == 1
    assert reasons["has a label that is neither a number nor a known word"] == 1
    assert len(labels_of(catalog, "judgment")) == 98
