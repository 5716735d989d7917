"""The benchmark's ratios: the names that outside checks read, and a missing peer in one sentence."""

import json
import re
import sys
import types

import numpy as np
import pandas as pd
import pytest

from makelib.runtime import UserError
from makelib.settings import preset
from makelib.study import bench, ratios
from makelib.workbook.reports.bench import page


def test_search_ratios_are_written_flat_with_their_parts(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    written = ratios.write(tmp_path, "search", ratios.search(vectors, vectors[:8], products=4000))
    assert set(written) == {"search_vs_faiss_1e6", "ann_recall_1e6", "ann_time_vs_exact_1e6"}
    held = json.loads((tmp_path / "search.json").read_text())
    assert held["ratios"] == written
    assert 0.8 < written["ann_recall_1e6"] <= 1
    assert held["products"] == 4000


def test_growth_is_fitted_and_the_page_says_what_holds(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = ratios.write(tmp_path, "growth", ratios.growth(vectors, vectors[:8], sizes=(1000, 4000)))
    assert set(found) == {
        f"{kind}_{what}_exponent" for kind in ("exact", "ivf", "ivf-pq") for what in ("build", "query")
    }
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert rows[0]["recall"] == 1
    assert 64 <= rows[0]["bytes_per_product"] < 66
    ratios.write(tmp_path, "search", {"ratios": {"ann_recall_1e6": 0.5, "search_vs_faiss_1e6": 1.0}})
    text = page(tmp_path).read_text(encoding="utf-8")
    assert re.search(r"ann_recall_1e6</td>\s*<td>0.5</td>\s*<td>≥ 0.98</td>\s*<td>NO<", text)
    assert re.search(r"search_vs_faiss_1e6</td>\s*<td>1</td>\s*<td>≤ 1.05</td>\s*<td>yes<", text)
    assert "data:image/png" in text


def test_copies_keep_the_cloud_and_the_first_are_the_models_own():
    own = np.eye(8, dtype=np.float32)
    vectors = ratios.grown(own, 20)
    np.testing.assert_array_equal(vectors[:8], own)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert ((vectors[8:16] * own).sum(axis=1) > 0.8).all()


def test_a_missing_peer_is_said_before_anything_is_timed(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install '\.\[peers\]'"):
        ratios.training(None, preset("smoke"))


def test_a_kind_that_one_thread_would_build_for_ever_is_left_out_and_said(monkeypatch, capsys):
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = types.SimpleNamespace(encode_queries=lambda texts: vectors[: len(texts)])
    catalog = types.SimpleNamespace(queries=pd.DataFrame({"query": ["a", "b"]}))
    parts = types.SimpleNamespace(embedding=vectors)
    retriever = types.SimpleNamespace(model=model, catalog=catalog, vectors=parts)
    monkeypatch.setattr(bench, "MOST_HNSW", 300)
    table = bench.search(retriever, (300, 600))
    assert set(table.loc[table["products"] == 300, "index"]) >= {"exact", "hnsw"}
    assert "hnsw" not in set(table.loc[table["products"] == 600, "index"])
    assert "hnsw is left out: one thread would build it from 600 vectors" in capsys.readouterr().out
