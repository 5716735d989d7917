"""Result rows and their tables: they say what `interval` and `paired_difference` say, and never score what did not run."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from worlds import SHORT, world

from makelib.study.metrics import evaluate
from makelib.study.statistics import (
    MissingArms,
    adjust,
    gain,
    holm,
    interval,
    paired_difference,
    result_rows,
    significance_table,
)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert holm([]).shape == (0,)


def study(seeds=(0, 1), variants=("joint", "mean", "adaptive")):
    """Three arms on one world; `adaptive` ranks the relevant a little higher."""
    catalog = world(80, 40)
    grades = catalog.relevance(np.arange(40))
    per_query = {}
    for number, variant in enumerate(variants):
        per_query[variant] = {}
        for seed in seeds:
            noise = np.random.default_rng([number, seed]).random(grades.shape)
            rows = np.argsort(-(noise + (0.8 if variant == "adaptive" else 0.3) * grades), axis=1)
            per_query[variant][seed] = evaluate(catalog, np.arange(40), rows, SHORT)
    table = pd.DataFrame(
        {"all": True, "even": np.arange(40) % 2 == 0, "one": np.arange(40) == 5}, index=grades_index(catalog)
    )
    return per_query, table


def grades_index(catalog):
    return pd.Index(catalog.queries["query_id"], name="query_id")


REFERENCES = [("adaptive", "joint"), ("adaptive", "mean"), ("mean", "joint")]


def test_rows_say_what_interval_and_paired_difference_say():
    per_query, table = study()
    rows = result_rows("modal_adaptation", per_query, REFERENCES, table, SHORT)
    intents = per_query["joint"][0]["intent"]
    for row in rows:
        keep = table[row["segment"]].to_numpy()
        arm, reference = (
            np.array([frame[row["metric"]][keep] for frame in per_query[name].values()])
            for name in (row["variant"], row["reference"] or "joint")
        )
        mean, low, high = interval(arm, intents[keep])
        assert [row["mean"], *row["interval"]] == pytest.approx([mean, low, high])
        assert row["per_seed"] == pytest.approx(np.nanmean(arm, axis=1))
        defined = ~np.isnan(arm).any(axis=0)
        assert (row["queries"], row["intents"]) == (defined.sum(), intents[keep][defined].nunique())
        if row["reference"] is None:
            assert row["variant"] == "joint"
            assert row["difference"] is row["p_value"] is row["difference_interval"] is row["p_values_per_seed"] is None
            continue
        found = paired_difference(arm, reference, intents[keep])
        assert row["difference"] == pytest.approx(found.difference)
        assert row["difference_interval"] == pytest.approx(found.interval)
        told = [row["p_value"], *row["p_values_per_seed"], row["smallest_difference"], row["p_equivalence"]]
        expected = [found.p_value, *found.p_values_per_seed, found.smallest_difference, found.p_equivalence]
        assert told == pytest.approx(expected)
        base = np.nanmean(reference)
        assert row["difference_percent"] == (pytest.approx(100 * found.difference / base) if base else None)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_one_row_per_variant_metric_segment_and_reference():
    per_query, table = study()
    rows = result_rows("s", per_query, REFERENCES, table, SHORT)
    metrics = [name for name in per_query["joint"][0] if "@" in name and "ceiling" not in name]
    arms = [("joint", None), ("mean", "joint"), ("adaptive", "joint"), ("adaptive", "mean")]
    expected = set(itertools.product(arms, metrics, ("all", "even")))  # segment `one` has no interval
    assert {((row["variant"], row["reference"]), row["metric"], row["segment"]) for row in rows} == expected
    assert len(rows) == len(expected)


def test_without_references_there_are_means_only():
    per_query, table = study()
    rows = result_rows("s", per_query, [], table, SHORT)
    assert {row["reference"] for row in rows} == {None}


def test_an_arm_that_did_not_run_is_named_and_never_scored():
    per_query, table = study()
    del per_query["adaptive"][1]
    with pytest.raises(MissingArms, match=r"Not run: adaptive seed 1\."):
        result_rows("s", per_query, REFERENCES, table, SHORT)
    del per_query["mean"]
    with pytest.raises(MissingArms) as error:
        result_rows("s", per_query, REFERENCES, table, SHORT)
    assert error.value.missing == [("adaptive", "seed 1"), ("mean", "seed 0"), ("mean", "seed 1")]
    with pytest.raises(MissingArms):
        result_rows("s", {}, [], table, SHORT)


def test_tables_of_other_queries_are_refused():
    per_query, table = study()
    with pytest.raises(ValueError, match="same queries in the same order"):
        result_rows("s", per_query, [], table[::-1], SHORT)
    per_query["mean"][1] = per_query["mean"][1][::-1]
    with pytest.raises(ValueError, match="same queries in the same order"):
        result_rows("s", per_query, [], table, SHORT)


def test_planned_comparisons_are_one_family_per_metric():
    per_query, table = study()
    rows = result_rows("s", per_query, REFERENCES, table, SHORT)
    planned = [("s", *pair) for pair in REFERENCES[:2]]
    assert adjust(rows, planned) == []
    for metric in ("Rel@3", "Recall@3"):
        family = [
            row
            for pair in REFERENCES[:2]
            for row in rows
            if (row["variant"], row["reference"], row["metric"], row["segment"]) == (*pair, metric, "all")
        ]
        assert [row["p_value_holm"] for row in family] == pytest.approx(holm([row["p_value"] for row in family]))
    metrics = {row["metric"] for row in rows}
    assert sum(row["p_value_holm"] is not None for row in rows) == 2 * len(metrics)


def test_a_planned_comparison_that_did_not_run_is_named_and_makes_no_other_easier():
    per_query, table = study()
    rows = result_rows("s", per_query, REFERENCES, table, SHORT)
    planned = [("s", *pair) for pair in REFERENCES[:2]]
    there = {id(row): row for row in rows if row["metric"] == "Rel@3" and row["segment"] == "all" and row["reference"]}
    assert adjust(rows, planned) == []
    whole = {key: row["p_value_holm"] for key, row in there.items() if row["p_value_holm"] is not None}
    assert adjust(rows, [*planned, ("s", "adaptive", "global"), ("t", "a", "b")]) == [
        ("s", "adaptive", "global"),
        ("t", "a", "b"),
    ]
    found = [there[key]["p_value_holm"] for key in whole]
    assert found == pytest.approx(holm([*(there[key]["p_value"] for key in whole), 1, 1])[:2])
    assert all(now >= before for now, before in zip(found, whole.values(), strict=True))


def test_a_gain_against_a_gain_is_an_interaction():
    per_query, table = study()
    gains = {
        f"{name} gain": {seed: gain(per_query[name][seed], per_query["joint"][seed]) for seed in (0, 1)}
        for name in ("mean", "adaptive")
    }
    rows = result_rows("s", per_query | gains, [("adaptive gain", "mean gain"), ("adaptive", "mean")], table, SHORT)
    found = {
        row["variant"]: row for row in rows if row["metric"] == "Rel@3" and row["segment"] == "all" and row["reference"]
    }
    for key in ("difference", "p_value"):
        assert found["adaptive gain"][key] == pytest.approx(found["adaptive"][key])  # the same is taken off both sides
    assert found["adaptive gain"]["mean"] == pytest.approx(found["adaptive"]["mean"] - rows_of(rows, "joint"))


def rows_of(rows, variant):
    return next(
        row["mean"] for row in rows if (row["variant"], row["metric"], row["segment"]) == (variant, "Rel@3", "all")
    )


def test_the_table_spells_its_verdicts_out():
    per_query, table = study(seeds=range(6))
    rows = result_rows("s", per_query, REFERENCES, table, SHORT)
    adjust(rows, [("s", "adaptive", "joint")])
    shown = significance_table(rows, ["Rel@3", "MRR@10"])
    assert shown["metric"].tolist() == ["Rel@3"] * 4 + ["MRR@10"] * 4
    line = shown.set_index(["metric", "variant", "against"]).loc["Rel@3"]
    row = next(
        row for row in rows if (row["variant"], row["reference"], row["metric"]) == ("adaptive", "joint", "Rel@3")
    )
    assert line.loc["adaptive", "joint"]["verdict"] == "better ***"
    assert line.loc["adaptive", "joint"]["p"].endswith("(Holm)")
    assert line.loc["adaptive", "joint"]["points"].startswith(f"{100 * row['difference']:+.1f} [")
    assert line.loc["adaptive", "joint"]["relative"] == f"{row['difference_percent']:+.1f} %"
    assert line.loc["mean", "joint"]["verdict"].startswith("no significant difference (could have seen ±")
    assert line.loc["joint", "–"]["verdict"] == "–"
    assert "percentage points" in shown.attrs["legend"]
    assert significance_table(rows, "Rel@3", "even")["queries"].max() <= 20
