"""Readers by rule and late fusion, against slow obvious code; and that nobody reads what the world does not tell."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from makelib.data.sources.bazaar.words import vocabulary
from makelib.data.sources.bazaar.world import generate
from makelib.settings import preset
from makelib.study.baselines import bm25_run, fused_run
from makelib.study.metrics import evaluate
from makelib.study.readers import can_read, reader_run

WORLD = preset("smoke").bazaar


@pytest.fixture(scope="module", params=["en", "zh"])
def catalog(request, tmp_path_factory):
    return generate(dataclasses.replace(WORLD, language=request.param), tmp_path_factory.mktemp("world") / "bazaar")


def slow(catalog, wanted, row, ideal):
    """How likely the product meets a query, constraint by constraint, by hand."""
    language, chances = catalog.info["settings"]["language"], []
    words, title = vocabulary(language), catalog.products["title"].iloc[row] or ""
    parts = title if language == "zh" else title.split()
    kinds = dict(zip(catalog.attributes["type"], catalog.attributes["category"], strict=True))
    for key, value in wanted.items():
        values = {name for name, known in words[key].items() if any(word in parts for word in known)}
        if key == "category":
            values |= {
                kinds[name]
                for name, known in words["type"].items()
                if any(word in parts for word in known) and name in kinds
            }
        own = catalog.attributes[key].iloc[row]
        prior = (catalog.attributes[key] == value).mean()
        photograph = catalog.truth["image_kind"].iloc[row]
        hidden = {
            "blur": ("pattern", "silhouette", "type", "category"),
            "watermark": ("pattern", "silhouette", "colour", "type", "category"),
        }
        visual = key in ("category", "type", "colour", "pattern", "silhouette")
        shown = visual and (photograph == "clean" or (photograph in hidden and key not in hidden[photograph]))
        if ideal:
            chances.append(float(own == value) if own in values or shown else prior)
        else:
            chances.append((value in values) / len(values) if values else prior)
    return np.mean(chances)


@pytest.mark.parametrize("name", ["reader", "ideal_reader"])
def test_a_reader_ranks_by_what_slow_code_believes(catalog, name):
    queries = catalog.query_rows("test")[:12]
    rows, scores = reader_run(catalog, queries, 30, name)
    for query, found, values in zip(queries, rows, scores, strict=True):
        wanted = catalog.queries["constraints"].iloc[query]
        believed = [slow(catalog, wanted, row, name == "ideal_reader") for row in found]
        assert values == pytest.approx(believed, abs=2e-5)  # equals are in the order of clicks
        rest = np.setdiff1d(np.arange(0, len(catalog), 17), found)
        assert max(slow(catalog, wanted, row, name == "ideal_reader") for row in rest) <= values[-1] + 2e-5


def test_what_can_be_known_stands_between_words_and_everything(catalog):
    queries = catalog.query_rows("test")
    relevance = {
        name: evaluate(catalog, queries, rows)["Rel@10"].mean()
        for name, rows in {
            "bm25": bm25_run(catalog, queries, 100)[0],
            **{name: reader_run(catalog, queries, 100, name)[0] for name in ("reader", "ideal_reader")},
        }.items()
    }
    ceiling = evaluate(catalog, queries, bm25_run(catalog, queries, 100)[0])["Rel@10 ceiling"].mean()
    assert relevance["bm25"] + 0.1 < relevance["reader"] < relevance["ideal_reader"] - 0.03
    assert relevance["ideal_reader"] < ceiling


def test_no_reader_where_the_truth_is_not_known(catalog):
    assert can_read(catalog)
    assert not can_read(dataclasses.replace(catalog, truth=None))
    assert not can_read(dataclasses.replace(catalog, info={}))


@hypothesis.given(st.integers(0, 10**6), st.integers(3, 9), st.integers(1, 3))
@hypothesis.settings(deadline=None, max_examples=50)
def test_late_fusion_equals_a_slow_loop(seed, depth, lists):
    rng = np.random.default_rng(seed)
    runs = [np.stack([rng.permutation(12)[:depth] for _ in range(4)]) for _ in range(lists)]
    for run in runs:
        run[:, depth - rng.integers(0, 3) :] = -1  # short rankings end with -1
    rows, scores = fused_run(runs, 12, 10)
    for query in range(4):
        total = {}
        for run in runs:
            for rank, row in enumerate(run[query], start=1):
                if row >= 0:
                    total[row] = total.get(row, 0) + 1 / (60 + rank)
        expected = sorted(total, key=lambda row: (-np.float32(total[row]), row))[:10]
        found = rows[query][rows[query] >= 0]
        assert scores[query][: len(found)] == pytest.approx([total[row] for row in found])
        assert set(found) == set(expected) or scores[query][len(found) - 1] == pytest.approx(total[expected[-1]])
