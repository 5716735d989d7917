"""The kind `milvus`: as good as exact search, nothing acknowledged is lost, and a server that is away costs one line.

A server of its own process (`python -m milvus_lite server`) stands for a cluster: the same code, by address and token.
"""

import itertools
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pymilvus")

from pymilvus import MilvusClient

from makelib.runtime import UserError
from makelib.search import milvus_engine
from makelib.search.index import ProductIndex
from makelib.settings import Index

MARKS = {"model_fingerprint": "m" * 12, "catalogue_fingerprint": "c" * 12}


def unit(shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def build(vectors, kind="milvus", **settings):
    return ProductIndex.build(
        vectors, [f"p{row}" for row in range(len(vectors))], Index(kind=kind, **settings), **MARKS
    )


def overlap(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An embedded index of 1,200 products, saved once."""
    folder = tmp_path_factory.mktemp("milvus") / "index"
    vectors = unit((1200, 16))
    vectors[[250, 3, 77, 120]] = vectors[40]
    build(vectors).save(folder)
    return folder, vectors


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may change."""
    return Path(shutil.copytree(saved[0], tmp_path / "index", ignore=shutil.ignore_patterns("LOCK")))


def test_it_finds_what_exact_search_finds(saved):
    index, exact, queries = ProductIndex.load(saved[0], **MARKS), build(saved[1], "exact"), unit((20, 16), 1)
    rows, scores = index.search(queries, 10)
    expected = exact.search(queries, 10)
    assert (len(index), index.dim, rows.dtype, scores.dtype) == (1200, 16, np.int64, np.float32)
    assert overlap(rows, expected[0]) > 0.99
    np.testing.assert_allclose(scores[:, 0], expected[1][:, 0], atol=1e-6)
    assert index.search(saved[1][[40]], 6)[0][0, :5].tolist() == [3, 40, 77, 120, 250], "equals in the order of rows"
    assert sorted(index.search(queries[:1], 1200)[0][0]) == list(range(1200)), "and never less than k"


def test_only_rows_among_those_asked_are_found(saved):
    among = np.random.default_rng(3).random(1200) < 0.05
    index, exact, queries = ProductIndex.load(saved[0]), build(saved[1], "exact"), unit((20, 16), 1)
    rows, _ = index.search(queries, 10, among)
    assert among[rows].all()
    assert overlap(rows, exact.search(queries, 10, among)[0]) > 0.99


def test_products_come_and_go_and_their_ids_are_no_code(folder):
    """Ids with quotes and operators stay ids; what is added to an opened index needs no saving."""
    index, later = ProductIndex.load(folder), unit((40, 16), 5)
    names = [f"p{row}" for row in range(20)] + [
        '" or row >= 0 or "',
        "it's",
        "日本\\",
        *(f"n{row}" for row in range(17)),
    ]
    index.upsert(later, names)
    index.delete(["p100", '" or row >= 0 or "'])
    assert len(index) == 1200 + 20 - 2
    again = ProductIndex.load(folder, **MARKS)
    assert again.ids.tolist() == [None if row == 1220 else name for row, name in enumerate(index.ids)]
    rows, _ = again.search(later, 1)
    found = [name for name in index.ids[rows.ravel()] if name in names]
    assert len(found) == 39, "all but the one that was deleted"


def test_of_another_model_or_catalogue_it_is_refused(folder):
    with pytest.raises(UserError, match=r"belongs to model mmmm.*but the model in use is other"):
        ProductIndex.load(folder, model_fingerprint="other")
    client = MilvusClient(str(folder / milvus_engine.DATABASE))
    client.alter_collection_properties(client.list_collections()[0], {"makelib.model": '"stranger"'})
    with pytest.raises(UserError, match=r'makelib.model is "mmmm.*that of Milvus\'s collection "stranger"'):
        ProductIndex.load(folder)
    client.drop_collection(client.list_collections()[0])
    with pytest.raises(UserError, match="has no collection makelib_mmmm"):
        ProductIndex.load(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["milvus"] == ""


def test_searches_go_on_while_products_are_added(folder):
    index, queries, stop, wrong = ProductIndex.load(folder), unit((4, 16), 1), threading.Event(), []

    def search():
        while not stop.is_set():
            try:
                rows, scores = index.search(queries, 10)
                names = index.ids[rows]
                if not (scores[:, :-1] >= scores[:, 1:]).all() or any(len(set(row)) < 10 for row in names):
                    wrong.append(names)
            except Exception as error:
                wrong.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    for turn in range(20):
        index.upsert(unit((50, 16), 100 + turn), [f"t{turn}-{row}" for row in range(50)])
        index.upsert(unit((5, 16), 200 + turn), [f"p{row}" for row in range(5 * turn, 5 * turn + 5)])
    stop.set()
    thread.join(30)
    assert wrong == []
    assert index.ids[index.search(unit((1, 16), 119), 1)[0][0, 0]].startswith("t19-")


CHILD = """
import sys
import numpy as np
from makelib.search.index import ProductIndex
index = ProductIndex.load(sys.argv[1])
for turn in range(10**6):
    vectors = np.random.default_rng(turn).normal(size=(20, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index.upsert(vectors, [f"t{turn}-{row}" for row in range(20)])
    print(turn, flush=True)
"""


def holds_all(index, turns):
    names = [f"t{turn}-{row}" for turn in range(turns + 1) for row in range(20)]
    assert set(names) <= set(index.ids)
    asked = np.random.default_rng(turns).normal(size=(20, 16))
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    rows, scores = index.search(asked, 1)
    assert index.ids[rows.ravel()].tolist() == names[-20:]
    np.testing.assert_allclose(scores, 1, atol=1e-5)


def test_killed_while_it_adds_nothing_acknowledged_is_lost(folder):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    said = [int(line) for line in itertools.islice(child.stdout, 15)]
    with pytest.raises(UserError, match="Only one process at a time can open an embedded index"):
        ProductIndex.load(folder)
    child.kill()
    said += [int(line) for line in child.stdout.read().split()]
    child.wait()
    holds_all(ProductIndex.load(folder, **MARKS), said[-1])


# -- a server of its own ----------------------------------------------------------------------------------------------


def served(data, port):
    words = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(data), "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    raise AssertionError("the server does not come up")


def test_by_address_the_same_and_a_killed_server_loses_nothing(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("MAKELIB_MILVUS_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MAKELIB_MILVUS_TOKEN", "somebody:secret")
    monkeypatch.setattr(milvus_engine, "PATIENCE", 2)
    server = served(tmp_path / "data", port)
    try:
        vectors, queries = unit((600, 16)), unit((20, 16), 1)
        index = build(vectors)
        index.save(tmp_path / "index")
        assert "secret" not in (tmp_path / "index" / "manifest.json").read_text()
        assert overlap(index.search(queries, 10)[0], build(vectors, "exact").search(queries, 10)[0]) > 0.99
        adding = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "index")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        said = [int(line) for line in itertools.islice(adding.stdout, 10)]
        server.kill()
        server.wait()
        began = time.perf_counter()
        with pytest.raises(UserError, match=rf"Milvus at http://127.0.0.1:{port} says: .*Is it running"):
            index.search(queries, 10)
        with pytest.raises(UserError, match="Is it running"):
            ProductIndex.load(tmp_path / "index")
        assert time.perf_counter() - began < 60
        said += [int(line) for line in adding.stdout.read().split()]
        assert "UserError" in adding.stderr.read().splitlines()[-1]
        server = served(tmp_path / "data", port)
        for wait in (1, 2, 4, 8, 16, 0):  # the channel of this process tries again after seconds
            try:
                holds_all(ProductIndex.load(tmp_path / "index", **MARKS), said[-1])
                break
            except UserError:
                assert wait
                time.sleep(wait)
        assert index.search(queries, 10)[0].shape == (20, 10), "who held it open goes on"
    finally:
        server.kill()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "hanging", "http://no.such.host.invalid:19530", "nonsense", ""])
def test_a_wrong_address_is_one_line_within_seconds(uri, monkeypatch, tmp_path):
    monkeypatch.setattr(milvus_engine, "PATIENCE", 2)
    monkeypatch.setenv("MAKELIB_MILVUS_URI", "")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}" if uri == "hanging" else uri or str(tmp_path)
        began = time.perf_counter()
        with pytest.raises(UserError) as caught:
            build(unit((10, 4)), milvus=where)
        assert time.perf_counter() - began < 10
    assert f"Milvus at {where} says" in str(caught.value)
    assert "\n" not in str(caught.value)
