"""The product index: equal to a full matrix product, ties by row, always k answers, nothing lost on the way to disk."""

import json
import multiprocessing

import faiss
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from makelib.runtime import UserError
from makelib.search.faiss_engine import by_rule
from makelib.search.index import ProductIndex
from makelib.settings import Index

KINDS = ("exact", "hnsw", "ivf", "ivf-pq")


def unit(shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def build(vectors, settings=None, **changes):
    marks = {"model_fingerprint": "m" * 12, "catalogue_fingerprint": "c" * 12, **changes}
    return ProductIndex.build(vectors, [f"p{row}" for row in range(len(vectors))], settings or Index(), **marks)


def brute(vectors, queries, k):
    """Every pair in float64, sorted by score, then by row."""
    scores = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
    rows = np.array(
        [sorted(range(len(vectors)), key=lambda row, q=q: (-scores[q, row], row)) for q in range(len(queries))]
    )
    return rows[:, :k], np.take_along_axis(scores, rows[:, :k], axis=1)


@hypothesis.given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 25), st.integers(1, 80), st.integers(0, 99))
@hypothesis.settings(deadline=None, max_examples=60)
def test_exact_search_equals_every_pair(count, dim, asked, k, seed):
    vectors, queries = unit((count, dim), seed), unit((asked, dim), seed + 1)
    index = build(vectors)
    rows, scores = index.search(queries, k)
    assert rows.shape == scores.shape == (asked, min(k, count))
    assert (rows.dtype, scores.dtype, len(index), index.dim) == (np.int64, np.float32, count, dim)
    expected_rows, expected_scores = brute(vectors, queries, k)[:2] if asked else (rows, scores)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    clear = np.abs(np.diff(expected_scores, axis=1, append=-2)) > 1e-6  # where rounding cannot swap neighbours
    clear[:, 1:] &= clear[:, :-1]
    assert (rows == expected_rows)[clear].all()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_come_in_the_order_of_rows(kind):
    vectors = unit((300, 16))
    vectors[[250, 3, 77, 120]] = vectors[40]
    rows, scores = build(vectors, Index(kind=kind, ivf_lists=4, ivf_probes=4)).search(vectors[[40]], 6)
    assert rows[0, :5].tolist() == [3, 40, 77, 120, 250]
    assert len(set(scores[0, :5])) == 1


@pytest.mark.parametrize("k", [1, 5, 100, 599])
def test_more_twins_than_k_still_give_the_first_rows(k):
    vectors = unit((700, 8))
    vectors[50:650] = vectors[50]  # such as all products without an image, in an index of images
    queries = np.stack([vectors[50], vectors[0]])
    rows, _ = build(vectors).search(queries, k)
    assert rows[0].tolist() == list(range(50, 50 + k))
    np.testing.assert_array_equal(rows[1], brute(vectors, queries, k)[0][1])


def test_scores_do_not_depend_on_the_company_of_a_query():
    vectors, queries = unit((2000, 64)), unit((64, 64), 1)
    index = build(vectors)
    rows, scores = index.search(queries, 50)
    for query in (0, 33, 63):
        alone_rows, alone_scores = index.search(queries[query : query + 1], 50)
        np.testing.assert_array_equal(alone_rows[0], rows[query])
        np.testing.assert_array_equal(alone_scores[0], scores[query])


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivf-pq"])
def test_approximate_search_finds_most_and_never_returns_minus_one(kind):
    vectors, queries = unit((1500, 32)), unit((40, 32), 1)
    index = build(vectors, Index(kind=kind, ivf_lists=16, ivf_probes=8))
    rows, scores = index.search(queries, 10)
    exact, _ = build(vectors).search(queries, 10)
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert overlap > 0.7
    assert (np.diff(scores, axis=1) <= 0).all()
    rows, _ = index.search(queries, 1500)  # a probe of half the lists cannot find as many
    assert all(sorted(row) == list(range(1500)) for row in rows.tolist())


def test_faiss_itself_returns_minus_one_here():
    """The guard above guards something: plain faiss falls short in the same setting."""
    index = build(unit((1500, 32)), Index(kind="ivf", ivf_lists=16, ivf_probes=8))
    assert (index._engine.index.search(unit((40, 32), 1), 1500)[1] < 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_building_twice_gives_the_same_index(kind):
    vectors, queries = unit((1200, 16)), unit((20, 16), 1)
    settings = Index(kind=kind, ivf_lists=8, ivf_probes=2, hnsw_search=16)
    first, second = (build(vectors, settings).search(queries, 30) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])


def test_building_leaves_the_thread_count_alone():
    before = faiss.omp_get_max_threads()
    build(unit((50, 4)), Index(kind="hnsw"))
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_searches_as_the_built_one(kind, tmp_path):
    vectors, queries = unit((1200, 16)), unit((20, 16), 1)
    settings = Index(kind=kind, ivf_lists=32, ivf_probes=3, hnsw_links=8, hnsw_search=77)
    index = build(vectors, settings)
    index.save(tmp_path / "index")
    loaded = ProductIndex.load(tmp_path / "index", model_fingerprint="m" * 12, catalogue_fingerprint="c" * 12)
    for before, after in zip(index.search(queries, 30), loaded.search(queries, 30), strict=True):
        np.testing.assert_array_equal(before, after)
    assert loaded.ids.tolist() == index.ids.tolist()
    assert loaded.manifest == index.manifest
    if kind == "hnsw":
        assert loaded._engine.index.hnsw.efSearch == 77
    if kind == "ivf":
        assert loaded._engine.index.nprobe == 3
    names = ["ids.parquet", "index.faiss", "manifest.json"] + ["vectors.npy"] * (kind == "ivf-pq")
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reopened", [False, True])
def test_products_come_and_go_without_a_rebuild(kind, reopened, tmp_path):
    """After adding, replacing and deleting, what is found is what an exact search over the remaining products finds."""
    vectors, later, queries = unit((1200, 16)), unit((60, 16), 1), unit((20, 16), 2)
    index = build(vectors, Index(kind=kind, ivf_lists=8, ivf_probes=8, hnsw_search=400))
    if reopened:
        index.save(tmp_path / "index")
        index = ProductIndex.load(tmp_path / "index")
    index.upsert(later, [f"p{row}" for row in range(20)] + [f"new{row}" for row in range(40)])
    index.delete([f"p{row}" for row in range(100, 150)] + ["new0"])
    assert len(index) == 1200 + 40 - 51
    if reopened:
        index.save(tmp_path / "index")
        index = ProductIndex.load(tmp_path / "index")
    rows, _ = index.search(queries, 10)
    left = {f"p{row}": vectors[row] for row in range(1200)} | dict(zip(index.ids[1200:], later, strict=True))
    left = {name: vector for name, vector in left.items() if name is not None and name in set(index.ids)}
    names, held = np.array(list(left)), np.stack(list(left.values()))
    expected = names[brute(held, queries, 10)[0]]
    overlap = np.mean([len(set(index.ids[a]) & set(b)) / 10 for a, b in zip(rows, expected, strict=True)])
    assert overlap == 1 if kind in ("exact", "ivf") else overlap > 0.9
    assert not {f"p{row}" for row in range(100, 150)} & set(index.ids[rows.ravel()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_only_rows_among_those_asked_are_found(kind, share):
    vectors, queries = unit((1200, 16)), unit((20, 16), 1)
    among = np.random.default_rng(3).random(1200) < share
    rows, _ = build(vectors, Index(kind=kind, ivf_lists=8, ivf_probes=2)).search(queries, 10, among)
    assert rows.shape == (20, min(10, among.sum()))
    assert among[rows].all()
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    if kind == "exact":
        inside = np.flatnonzero(among)
        np.testing.assert_array_equal(rows, inside[brute(vectors[inside], queries, rows.shape[1])[0]])


def test_what_is_not_there_cannot_be_deleted():
    with pytest.raises(UserError, match="'nobody' is not in the index"):
        build(unit((10, 4))).delete(["p1", "nobody"])


@pytest.mark.parametrize("count", [1, 30, 300, 6000, 1_000_000])
def test_parameters_follow_from_the_number_of_products(count):
    chosen = by_rule(Index(kind="ivf"), count)
    assert 1 <= chosen.ivf_probes <= chosen.ivf_lists <= max(1, count // 39)
    if count == 1_000_000:
        assert (chosen.ivf_lists, chosen.ivf_probes) == (4000, 126)
    assert by_rule(Index(kind="ivf", ivf_lists=7, ivf_probes=3), count) == Index("ivf", ivf_lists=7, ivf_probes=3)


def test_size_counts_vectors_and_graph():
    vectors = unit((1000, 16))
    exact, graph = build(vectors).nbytes, build(vectors, Index(kind="hnsw")).nbytes
    assert 1000 * 16 * 4 <= exact < 1000 * 16 * 4 + 200
    assert graph > exact + 1000 * 32 * 4


def _search_in_child(index, queries, box):
    box.put(index.search(queries, 5)[0])


def test_search_after_a_fork_comes_back():
    vectors = unit((3000, 64))
    index = build(vectors)
    expected, _ = index.search(vectors[:64], 5)  # starts OpenMP's threads, which a fork does not copy
    context = multiprocessing.get_context("fork")
    box = context.SimpleQueue()
    child = context.Process(target=_search_in_child, args=(index, vectors[:64], box))
    child.start()
    child.join(20)
    hung = child.is_alive()
    child.kill()
    assert not hung
    np.testing.assert_array_equal(box.get(), expected)


# -- what a user can mend ----------------------------------------------------------------------------------------


def broken(change):
    vectors, ids = unit((10, 4)), [f"p{row}" for row in range(10)]
    return change(vectors, ids) or (vectors, ids)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v, ids: v.__setitem__(3, 2 * v[3]), r"'p3' \(row 3\) has length 2, not 1"),
        (lambda v, ids: v.__setitem__((7, 0), np.nan), r"'p7' \(row 7\) is not finite"),
        (lambda v, ids: v.__setitem__((7, 0), np.inf), "is not finite"),
        (lambda v, ids: ids.__setitem__(9, "p2"), "'p2' stands for more than one"),
        (lambda v, ids: ids.pop() and None, "10 product vectors but 9 product ids"),
        (lambda v, ids: (v[:0], []), "at least one row"),
        (lambda v, ids: (v[0], ids[:4]), r"the shape \(N, d\)"),
    ],
)
def test_build_refuses(change, says):
    vectors, ids = broken(change)
    with pytest.raises(UserError, match=says):
        ProductIndex.build(vectors, ids, model_fingerprint="m", catalogue_fingerprint="c")


def test_too_few_vectors_for_the_lists():
    with pytest.raises(UserError, match="ivf_lists to at most 10"):
        build(unit((10, 4)), Index(kind="ivf", ivf_lists=64))
    build(unit((10, 4)), Index(kind="ivf", ivf_lists=10))


@pytest.mark.parametrize(
    ("queries", "k", "says"),
    [
        (unit((2, 5)), 3, r"\(Q, 4\), the width of this index"),
        (unit(4), 3, r"these have \(4,\)"),
        (unit((2, 4)), 0, "k must be at least 1"),
        (np.full((2, 4), np.nan), 3, "not finite"),
    ],
)
def test_search_refuses(queries, k, says):
    with pytest.raises(UserError, match=says):
        build(unit((10, 4))).search(queries, k)


def test_an_index_of_another_model_or_catalogue_is_refused(tmp_path):
    build(unit((10, 4)), model_fingerprint="aaa", catalogue_fingerprint="bbb").save(tmp_path)
    with pytest.raises(UserError, match=r"belongs to model aaa, but the model in use is zzz.*python -m makelib index"):
        ProductIndex.load(tmp_path, model_fingerprint="zzz")
    with pytest.raises(UserError, match="belongs to catalogue bbb, but the catalogue in use is zzz"):
        ProductIndex.load(tmp_path, model_fingerprint="aaa", catalogue_fingerprint="zzz")
    assert len(ProductIndex.load(tmp_path)) == 10


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "is not the manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is not the manifest"),
        (lambda folder: (folder / "index.faiss").unlink(), "Cannot read the index"),
        (lambda folder: (folder / "index.faiss").write_bytes(b"nonsense"), "Cannot read the index"),
        (lambda folder: (folder / "ids.parquet").unlink(), "Cannot read the index"),
        (lambda folder: edit(folder, format=9), "index format 9; this version reads format 2"),
        (lambda folder: edit(folder, count=11), "do not belong together"),
        (lambda folder: edit(folder, kind="hnsw"), "do not belong together"),
        (lambda folder: edit(folder, settings={"kind": "exact", "surprise": 1}), "surprise"),
        (lambda folder: faiss.write_index(faiss.IndexFlatL2(4), str(folder / "index.faiss")), "do not belong together"),
        (lambda folder: build(unit((3, 4))).save(folder.parent / "b") or swap(folder, "index.faiss"), "do not belong"),
        (lambda folder: build(unit((3, 4))).save(folder.parent / "b") or swap(folder, "ids.parquet"), "do not belong"),
    ],
)
def test_damaged_folders_are_refused(damage, says, tmp_path):
    build(unit((10, 4))).save(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=says):
        ProductIndex.load(tmp_path / "a")


def swap(folder, name):
    (folder.parent / "b" / name).replace(folder / name)
