"""The map of the catalogue: places are a projection, a query has one, too, colours say what they say, titles stay text."""

from types import SimpleNamespace

import numpy as np
import pytest
from hostile import HOSTILE, hostile_catalog, untrained_retrievers

from makelib import CatalogueMap
from makelib.runtime import UserError
from makelib.workbook import map as module


@pytest.fixture(scope="module")
def retrievers(tmp_path_factory):
    return untrained_retrievers(hostile_catalog(tmp_path_factory.mktemp("shop") / "catalogue"))


@pytest.fixture
def shown(retrievers):
    return CatalogueMap(retrievers, query="red thing", k=5)


def test_places_are_the_projection_that_keeps_most_and_a_query_has_its_own(shown, retrievers):
    table, query = shown.table(shown.state)
    vectors = np.asarray(retrievers["adaptive"].vectors.embedding, np.float64)
    middle = vectors.mean(0)
    _, sizes, axes = np.linalg.svd(vectors - middle, full_matrices=False)
    found = table[["x", "y"]].to_numpy()
    for axis in (0, 1):
        expected = (vectors - middle) @ axes[axis]
        sign = np.sign(expected @ found[:, axis])
        assert np.allclose(found[:, axis], sign * expected, atol=1e-4)
        asked = retrievers["adaptive"].embed("red thing") - middle
        assert query[axis] == pytest.approx(sign * asked @ axes[axis], abs=1e-4)
    share = (sizes[:2] ** 2).sum() / (sizes**2).sum()
    assert f"the plane shows {share:.0%}" in shown.caption(shown.state)


def test_hits_are_those_of_the_search_and_are_drawn_even_where_few_products_are(retrievers, monkeypatch):
    monkeypatch.setattr(module, "POINTS", 10)
    few = CatalogueMap(retrievers, query="red thing", k=5)
    table, _ = few.table(few.state)
    hits = few.views.search(few.state)
    assert 10 <= len(table) <= 15
    assert table.loc[table["rank"] > 0].sort_values("rank")["row"].tolist() == hits["row"].tolist()
    assert "10 of 60 products" in few.caption(few.state)


def test_colours_part_the_products(shown):
    table, _ = shown.table(shown.state)
    by_category = {name: part for name, _, part in module.groups(table, "category")}
    assert set(by_category) == {"dress", "<i>bag</i>"}
    assert sum(map(len, by_category.values())) == len(table)
    by_relevance = {name: set(part["row"]) for name, _, part in module.groups(table, "relevance")}
    truth = shown.views.catalog.relevance(np.array([2]))[0]  # "red thing"
    assert by_relevance["partly"] == set(np.flatnonzero((truth > 0) & (truth < 1)))
    assert by_relevance["not relevant"] == set(np.flatnonzero(truth == 0))
    unknown = shown.table(shown._checked(module.MapState(query="nobody asked")))[0]
    assert [name for name, *_ in module.groups(unknown, "relevance")] == ["not judged"]
    (one,) = module.groups(table, "weight of the image")
    assert one[1] is None
    weights = shown.views.open("adaptive").vectors.weights[:, 1]
    assert np.allclose(one[2]["weight"], weights[one[2]["row"]])


def test_a_fusion_without_weights_has_no_colour_for_them(shown):
    table, _ = shown.table(shown._checked(module.MapState(variant="joint", query="red thing")))
    assert [name for name, *_ in module.groups(table, "weight of the image")] == ["no weights"]


def test_many_categories_share_grey(shown, monkeypatch):
    monkeypatch.setattr(module, "CATEGORIES", 1)
    names = [name for name, *_ in module.groups(shown.table(shown.state)[0], "category")]
    assert names[0] == "others"
    assert len(names) == 2


def test_pointing_shows_a_product_and_a_click_keeps_it(shown):
    assert shown.widget is shown.widget
    first = shown.figure.data[0]
    rows = next(part["row"].to_numpy() for *_, part in module.groups(shown.table(shown.state)[0], "category"))
    before = shown.state
    shown._pointed(rows)(first, SimpleNamespace(point_inds=[3]), None)
    assert f'data-product="p{rows[3]}"' in shown.panel.value
    assert shown.state == before
    shown._pointed(rows, keep=True)(first, SimpleNamespace(point_inds=[4]), None)
    assert shown.state.selected == f"p{rows[4]}"
    shown._pointed(rows)(first, SimpleNamespace(point_inds=[]), None)  # between two points
    assert f'data-product="p{rows[4]}"' in shown.panel.value


def test_controls_change_the_map_and_ranks_are_walked_through(shown):
    assert shown.widget
    shown.colour.value = "relevance"
    assert {"partly", "not relevant", "hits", "the query"} <= {trace.name for trace in shown.figure.data}
    shown.variant.value = "title"
    assert shown.state.variant == "title"
    hits = shown.views.search(shown.state)
    shown.rank.value = 2
    assert f'data-product="{hits["product_id"].iloc[1]}"' in shown.panel.value
    shown.query.value = "blue acme"
    assert shown.state.query == "blue acme"
    assert shown.state.selected is None
    shown.show(query=" ")
    assert "mkx-alert" not in shown.alert.value


def test_titles_and_categories_stay_text(shown):
    assert shown.widget
    said = [text for trace in shown.figure.data if trace.text is not None for text in trace.text]
    said += [trace.name for trace in shown.figure.data]
    assert any("script" in text for text in said)
    assert not [text for text in said if "<" in text]
    page = shown.page(query=HOSTILE[0]).data
    assert HOSTILE[0] not in page
    assert page.count("<img") >= 1
    assert "data:image/png" in page


def test_what_is_not_there_is_said(retrievers):
    with pytest.raises(UserError, match="no trained variant 'ful'"):
        CatalogueMap(retrievers, variant="ful")
    with pytest.raises(UserError, match="not by 'price'"):
        CatalogueMap(retrievers, colour="price")
