"""What people asked and clicked, as shops and test collections keep it: logs, judgments, splits of any kind, ids in other writings."""

import json

import numpy as np
import pandas as pd
import pytest
from test_exports import COLOURS, COUNT, KINDS, plain, shop, taken

from makelib.data.sources.files import log
from makelib.data.sources.files.health import health_report
from makelib.data.sources.files.judged import Ids
from makelib.runtime import UserError
from makelib.study.segments import segments


def asked(folder, rows, queries=None):
    pd.DataFrame(rows).to_csv(folder / "interactions.csv", index=False)
    if queries is not None:
        pd.DataFrame(queries).to_csv(folder / "queries.csv", index=False)
    return folder


@pytest.fixture
def raw(tmp_path):
    return shop(tmp_path / "raw", [plain(i) for i in range(COUNT)])


def judged(**more):
    """Every product judged for its colour and kind: 12 queries of 4 products each."""
    return [{"query": f"{COLOURS[i % 3]} {KINDS[i % 4]}", "product_id": f"p{i}", **more} for i in range(COUNT)]


def test_a_beir_folder_comes_in_without_a_mapping(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"{i:05d}", "title": plain(i)["title"], "text": "long text", "metadata": {}} for i in range(COUNT)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
    (folder / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"q{i}", "text": t}) for i, t in enumerate(texts))
    )
    for split, part in (("train", range(8)), ("dev", range(8, 10)), ("test", range(10, 12))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\t{i:05d}\t{1 + i % 2}" for i in part)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines))
    catalog = taken(folder, tmp_path / "out")
    assert catalog.queries["split"].value_counts().to_dict() == {"train": 8, "validation": 2, "test": 2}
    assert catalog.products["product_id"][0] == "00000"
    assert len(catalog.clicks("train")[0]) == 8
    assert "MADE OF JUDGMENTS" in health_report(catalog)


def test_trec_topics_and_qrels(tmp_path):
    folder = shop(tmp_path / "raw", [plain(i) for i in range(COUNT)])
    (folder / "topics.txt").write_text(
        "".join(f"<top>\n<num> Number: {300 + i}\n<title> red {KINDS[i]}\n<desc> x\n</top>\n" for i in range(3))
    )
    (folder / "qrels.txt").write_text(
        "".join(f"{300 + i} 0 p{12 * i + j} {j % 3}\n" for i in range(3) for j in range(9))
    )
    catalog = taken(folder, tmp_path / "out")
    assert sorted(catalog.queries["query"]) == sorted(f"red {kind}" for kind in KINDS[:3])
    assert len(catalog.interactions) == 27
    assert catalog.interactions["kind"].unique().tolist() == ["judgment"]
    (folder / "topics.txt").write_text("".join(f"{300 + i}\tred {KINDS[i]}\n" for i in range(3)))
    assert len(taken(folder, tmp_path / "out").queries) == 3


@pytest.mark.parametrize(
    ("own", "written", "found"),
    [
        (["007", "12"], "7", "007"),
        (["7", "12"], "7.0", "7"),
        (["7", "12"], " 12 ", "12"),
        (["07", "007"], "7", "7"),  # both could be meant
        (["a.0"], "a", "a"),
        (["0"], "0.0", "0"),
    ],
)
def test_ids_in_another_writing(own, written, found):
    assert Ids(own)(written) == found


def test_one_mapping_may_be_for_one_table(raw, tmp_path):
    rows = [{"q": row["query"], "doc": row["product_id"]} for row in judged()]
    pd.DataFrame(rows).to_csv(raw / "interactions.csv", index=False)
    with pytest.raises(UserError, match=r"--map interactions\.product_id="):
        taken(raw, tmp_path / "out")
    options = {"interactions.product_id": "doc", "interactions.query": "q"}
    assert len(taken(raw, tmp_path / "out", columns=options).interactions) == COUNT
    with pytest.raises(UserError, match="no column 'nope'"):
        taken(raw, tmp_path / "out", columns=options | {"interactions.label": "nope"})
    with pytest.raises(UserError, match=r"no column 'shops\.query' to map"):
        taken(raw, tmp_path / "out", columns={"shops.query": "q"})


@pytest.mark.parametrize(
    ("given", "have", "said"),
    [
        (("train", "test"), {"train", "validation", "test"}, "No query was for validation"),
        (("test",), {"train", "test"}, "for training only"),
        (("dev", "training", "eval"), {"train", "validation", "test"}, "MADE OF JUDGMENTS"),
        (None, {"train", "validation", "test"}, "by intent"),
    ],
)
def test_splits_of_any_kind(raw, tmp_path, given, have, said):
    rows = judged(label=3)
    names = sorted({row["query"] for row in rows})
    queries = [
        {"query_id": i, "query": name, **({"split": given[i % len(given)]} if given else {})}
        for i, name in enumerate(names)
    ]
    pairs = [
        {"query_id": f"{names.index(r['query'])}.0", "product_id": r["product_id"], "label": 3 - i % 2}
        for i, r in enumerate(rows)
    ]
    catalog = taken(asked(raw, pairs, queries), tmp_path / "out")
    assert set(catalog.queries["split"]) >= have
    assert said in health_report(catalog)
    assert len(catalog.clicks("train")[0]) > 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_queries(raw, tmp_path, count):
    rows = [row for row in judged() if row["query"] in {r["query"] for r in judged()[:count]}]
    catalog = taken(asked(raw, rows), tmp_path / "out")
    assert len(catalog.queries) == count
    assert all(
        f"no query for {split}" in health_report(catalog)
        for split in {"train", "validation", "test"} - set(catalog.queries["split"])
    )


def log_rows(**more):
    return [
        {
            **row,
            "impressions": 10,
            "clicks": i % 4,
            "carts": int(i % 8 == 3),
            "purchases": int(i % 16 == 7),
            "user": f"u{i % 7}",
            "timestamp": f"2024-01-{1 + i % 28:02d}T10:00:00",
            **more,
        }
        for i, row in enumerate(judged())
    ]


def test_counts_become_grades_and_clicks(raw, tmp_path):
    catalog = taken(asked(raw, log_rows()), tmp_path / "out", grades={"carts": 0.7})
    table = catalog.interactions
    grade = table[table["kind"] == "judgment"].set_index("product")["label"]
    expected = [1.0 if i % 16 == 7 else 0.7 if i % 8 == 3 else 0.3 if i % 4 else 0.0 for i in range(COUNT)]
    assert grade.sort_index().tolist() == pytest.approx(expected)
    clicks = table[table["kind"] == "click"].groupby("product").size()
    assert clicks.to_dict() == {i: max(1, i % 4) for i in range(COUNT) if i % 4}
    assert "clicks 0.3, carts 0.7, purchases 1" in health_report(catalog)


def test_a_log_is_split_by_time(raw, tmp_path):
    catalog = taken(asked(raw, log_rows()), tmp_path / "out", split_by="time")
    assert set(catalog.queries["split"]) == {"train", "validation", "test"}
    report = health_report(catalog)
    assert "Queries were split by time" in report
    assert "of users seen there" in report
    with pytest.raises(UserError, match="needs a column `timestamp`"):
        taken(asked(raw, log_rows(timestamp="never")), tmp_path / "out", split_by="time")


def test_rare_queries_and_personal_data_stay_here(raw, tmp_path):
    rows = [
        *log_rows(),
        {**log_rows()[0], "query": "my secret thing", "user": "u1"},
        *({**log_rows()[1], "query": "mail anna@shop.example", "user": f"u{i}"} for i in range(5)),
    ]
    catalog = taken(asked(raw, rows), tmp_path / "out", rare_queries=2)
    words = (
        " ".join(catalog.queries["query"]) + health_report(catalog) + (catalog.folder / "quarantine.csv").read_text()
    )
    assert "secret" not in words
    assert "anna" not in words
    assert "mail [personal]" in words
    account = json.loads((catalog.folder / "health.json").read_text())["interactions"]
    assert account["read"] == len(rows) == account["kept"] + account["dropped"] + account["left_out"]


def test_propensities_are_those_that_made_the_clicks():
    random = np.random.default_rng(0)
    true = np.array([1.0, 0.6, 0.3])
    pairs = np.repeat(np.arange(400), 3)
    position = np.tile([1, 2, 3], 400)
    attractive = random.uniform(0.05, 0.5, 400)[pairs]
    shown = np.full(len(pairs), 200)
    clicked = random.binomial(200, true[position - 1] * attractive)
    found = log.propensities(pairs, pairs, position, shown, clicked)
    assert [found[place] for place in (1, 2, 3)] == pytest.approx(true, abs=0.03)
    assert log.propensities(pairs, np.arange(len(pairs)), position, shown, clicked) == {}
    assert log.repeats(np.array([1, 3, 100]), np.array([0.5, 1.0, 1.0])).tolist() == [2, 3, 20]


@pytest.mark.parametrize("texts", [["1700000000", "1700000001"], ["1700000000000", "1700000001000"],
                                   ["2023-11-14 22:13:20", "2023-11-14T22:13:21Z"]])  # fmt: skip
def test_times_as_people_keep_them(texts):
    assert log.times(pd.Series(texts)).diff().iloc[1] == pd.Timedelta(seconds=1)


def test_known_and_new_users_are_segments_where_users_are_told(raw, tmp_path):
    rows = [row | {"user": "anna" if KINDS.index(row["query"].split()[1]) < 2 else "berta"} for row in judged()]
    names = sorted({row["query"] for row in rows})
    split = {name: "test" if name.startswith("red") else "train" for name in names if not name.endswith("shirt")}
    split |= {name: "test" for name in names if name.split()[1] in KINDS[:1]}  # anna's shirts are for the test
    split |= {name: "validation" for name in names if name.endswith(KINDS[1])}  # and she never asked in training
    queries = [{"query_id": name, "query": name, "split": split[name]} for name in names]
    catalog = taken(asked(raw, [row | {"query_id": row["query"]} for row in rows], queries), tmp_path / "out")
    table = segments(catalog, catalog.query_rows("test"))
    new = table.index[table["new users"]]
    assert sorted(new) == sorted(name for name in names if name.split()[1] == KINDS[0])
    assert sorted(table.index[table["known users"]]) == sorted(set(table.index) - set(new))
    assert len(new) < len(table)
    assert "anna" not in "".join(p.read_text() for p in catalog.folder.glob("*.[cj]s*"))
    (raw / "queries.csv").unlink()
    assert "new users" not in segments(taken(asked(raw, judged()), tmp_path / "out"), np.arange(3))
    logged = taken(asked(raw, log_rows()), tmp_path / "later", split_by="time")
    assert "known users" in segments(logged, logged.query_rows("test"))
