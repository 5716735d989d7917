"""The simulated shop: shoppers do what was written down, and a better arm is found better, a like one not."""

import json
import time

import numpy as np
import pandas as pd
import pytest

from makelib.runtime import UserError
from makelib.study import shop
from makelib.study.arms import scoring_key
from makelib.study.experiment import Experiment
from makelib.workbook.reports.verdict import claims

TINY = {
    "bazaar.products": 300, "bazaar.queries": 250, "bazaar.clicks": 2500, "evaluation.test_queries": 60,
    "evaluation.validation_queries": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """`full` ranks by the truth, `adaptive` and `title` at random; nothing is trained."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = Experiment.open("run", "smoke", "bazaar", 2, TINY)
        experiment = Experiment(folder / "run", experiment.settings, experiment.catalog)
        relevance = experiment.catalog.relevance(experiment.test_rows)
        for seed in (0, 1):
            rng = np.random.default_rng(seed)
            noise = rng.random(relevance.shape)
            for variant, scores in (("full", relevance + 0.01 * noise), ("title", noise), ("adaptive", 1 - noise)):
                arm = experiment.arm("make", variant, seed)
                arm.folder.mkdir(parents=True, exist_ok=True)
                np.savez(arm.folder / "hits.npz", rows=np.argsort(-scores, axis=1)[:, :100])
                (arm.folder / "arm.json").write_text(json.dumps({"scoring": scoring_key(arm.settings)}))
        yield experiment


def test_shoppers_follow_the_cascade_place_by_place():
    """The fast way equals the naive one: look, click, buy and leave, go on."""
    rng = np.random.default_rng(0)
    relevance, chances = rng.random((5, 4)), rng.random((30, 5, 4, 3))
    shopper = shop.Shopper()
    clicked, bought = shop.browse(relevance, chances, shopper)
    for session in range(30):
        for query in range(5):
            clicks, buys = [False] * 4, [False] * 4
            for place in range(4):
                grade, (click, buy, leave) = relevance[query, place], chances[session, query, place]
                clicks[place] = click < shopper.click[0] + (shopper.click[1] - shopper.click[0]) * grade
                buys[place] = clicks[place] and buy < shopper.buy[0] + (shopper.buy[1] - shopper.buy[0]) * grade
                if buys[place] or leave >= shopper.go_on[1 if clicks[place] else 0]:
                    break
            assert (clicked[session, query].tolist(), bought[session, query].tolist()) == (clicks, buys)


def test_a_page_takes_behaviour_at_every_second_place_and_nothing_twice():
    page, own = shop.pages(np.array([[1, 2, 3, *range(20, 40)]]), np.array([[2, 9, -1, -1, -1]]))
    assert page[0].tolist() == [1, 2, 3, 9, 20, 21, 22, 23, 24, 25]
    assert own[0].tolist() == [True, False, True, False] + [True] * 6
    page, own = shop.pages(np.array([[1]]), np.array([[-1] * 5]))
    assert page[0].tolist() == [1] + [-1] * 9
    assert own.sum() == 1


def test_the_better_arm_wins_in_every_way(experiment):
    began = time.time()
    rows, crowds = shop.simulate(experiment)
    assert time.time() - began < 60
    found = {(row["metric"], row["segment"]): row for row in rows if row["reference"] == "title"}
    for metric in ("relevance@10", "clicks@10", "purchases@10", "wins@10"):
        for group in ("all", "new", "inactive", "active"):
            assert found[metric, group]["difference"] > 0
            assert found[metric, group]["p_value"] < 0.05
    # a channel that is the same for both arms takes places from the better one, where there is history
    assert found["relevance@10", "new − active"]["difference"] > 0
    assert found["relevance@10", "new"]["difference"] > found["relevance@10", "active"]["difference"]
    assert crowds.set_index("shoppers").loc["all", "p"] < 0.05
    assert json.loads((experiment.run / "results" / "online_simulation.json").read_text())
    online = [claim for claim in claims(rows) if claim["comparison"].endswith("relevance@10")]
    assert [claim["verdict"] for claim in online] == ["supported"]


def test_arms_alike_are_not_told_apart(experiment):
    rows, _ = shop.simulate(experiment, ("adaptive", "title"))
    found = {row["metric"]: row for row in rows if row["reference"] == "title" and row["segment"] == "all"}
    assert found["relevance@10"]["p_value"] > 0.05
    assert found["wins@10"]["p_value"] > 0.05


def test_new_shoppers_see_retrieval_alone(experiment):
    rng, catalog, queries = np.random.default_rng(0), experiment.catalog, experiment.test_rows
    after = shop._categories_asked(catalog, queries)
    nothing, one, many = (shop._behaviour(catalog, after, clicks, rng) for clicks in shop.HISTORY.values())
    assert (nothing == -1).all()
    assert (one >= 0).mean() > 0.5
    assert (many >= 0).mean() > 0.5
    clicks = pd.DataFrame(dict(zip(("query", "product"), catalog.clicks("train"), strict=True)))
    together = clicks.merge(clicks, on="query")[["product_x", "product_y"]].drop_duplicates()
    category = pd.factorize(catalog.products["category"])[0]
    linked = together.assign(of=category[together["product_x"]]).groupby("of")["product_y"].agg(set)
    for query, row in zip(after, many, strict=True):
        assert set(row[row >= 0]) <= linked[query]  # clicked beside something of the category that is asked for
    judged = catalog.relevance(queries) >= 1
    for query in range(0, len(queries), 10):
        counts = pd.Series(category[judged[query]]).value_counts()
        assert counts.get(after[query], 0) == counts.max()


def test_what_cannot_be_simulated_is_said(experiment, monkeypatch):
    assert shop.cannot(experiment.catalog) == ""
    with pytest.raises(UserError, match="did not run; run notebook 04"):
        shop.simulate(experiment, ("title_keywords", "title"))
    monkeypatch.setitem(experiment.catalog.queries, "constraints", None)
    with pytest.raises(UserError, match="bazaar knows clicks only"):
        shop.simulate(experiment)
