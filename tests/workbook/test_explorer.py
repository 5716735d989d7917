"""The explorer: views are pure and inert, explanations equal slow obvious code, the widget never fails silently.

Models are small and untrained (gates and cross attention stirred up): what is tested is arithmetic and HTML.
"""

import asyncio
import base64
import concurrent.futures
import dataclasses
import datetime
import gc
import html
import html.parser
import io
import json
import os
import re
import threading
import time
import weakref
from pathlib import Path
from typing import ClassVar

import comm
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hostile import HOSTILE, hostile_catalog, untrained_retrievers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from makelib.data.pictures import fit
from makelib.data.tables import write_catalog
from makelib.runtime import UserError
from makelib.search import explain
from makelib.search.retriever import Retriever
from makelib.settings import preset, write_yaml
from makelib.study.arms import scoring_key
from makelib.study.experiment import Experiment
from makelib.workbook.explorer import html as explorer_html
from makelib.workbook.explorer import live as live_module
from makelib.workbook.explorer.state import State
from makelib.workbook.explorer.views import Views, once, telling_queries
from makelib.workbook.explorer.widget import DEBOUNCE, QueryExplorer

TAGS = {
    "div", "span", "article", "section", "ol", "li", "img", "svg", "path", "h3", "p", "b", "i", "small", "em", "bdi",
    "style", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption",
}  # fmt: skip
ATTRIBUTES = {
    "class", "style", "title", "alt", "src", "role", "aria-label", "aria-hidden", "scope", "data-rank", "data-product",
    "d", "height", "viewbox", "preserveaspectratio",
}  # fmt: skip


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return hostile_catalog(tmp_path_factory.mktemp("hostile") / "catalogue")


@pytest.fixture(scope="module")
def retrievers(catalog):
    return untrained_retrievers(catalog)


@pytest.fixture
def views(retrievers):
    return Views(retrievers)


@pytest.fixture
def explorer(retrievers):
    return QueryExplorer(retrievers, k=6, queries={"Colour": "red acme", "<b>caption</b>": "<b>acme</b>"})


class Tags(html.parser.HTMLParser):
    """What a browser would make of a piece of HTML: its tags, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def inert(page):
    """Only tags and attributes that the explorer writes itself; nothing that runs, loads or leaves the page."""
    found = Tags(page)
    assert set(found.tags) <= TAGS
    assert {name for name, _ in found.attributes} <= ATTRIBUTES
    assert all(value.startswith("data:image/") for name, value in found.attributes if name == "src")
    assert found.tags.count("style") <= 1
    return True


# -- state ------------------------------------------------------------------------------------------------------------


@given(st.builds(State, query=st.text(), like=st.none() | st.text(), k=st.integers(1, 99), blank=st.booleans()))
def test_a_saved_state_comes_back_as_it_was(state):
    assert State.from_json(state.to_json()) == state


@pytest.mark.parametrize("content", ["", "[]", "3", '{"k": "12"}', '{"unknown": 1}', '{"kind": "random"}'])
def test_what_is_no_saved_state_is_refused(content):
    with pytest.raises(UserError, match="saved state"):
        State.from_json(content)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variant": "gate"}, "no trained variant 'gate' here; there is adaptive, title, joint"),
        ({"compare": "gate"}, "no trained variant"),
        ({"category": "shoes"}, "no category 'shoes'"),
        ({"selected": "p99"}, "no product 'p99'"),
        ({"k": 0}, "at least 1"),
        ({"k": 100_000}, "at most 300"),
        ({"by": "product"}, "choose one first"),
    ],
)
def test_a_state_that_names_what_is_not_here_is_refused(views, changes, says):
    with pytest.raises(UserError, match=says):
        views.check(State(**changes))


def own_picture(size=(300, 200), kind="WEBP"):
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_of_ones_own_is_kept_small_and_redrawn():
    uri = explorer_html.own_picture(own_picture((3000, 2000), "JPEG"))
    kept = explorer_html.decoded(uri)
    assert (kept.size, kept.mode) == ((224, 149), "RGB")
    state = State(by="picture", picture=uri)
    assert State.from_json(state.to_json()) == state
    assert len(state.to_json()) < 60_000


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is not an image that can be read"),
        (b"<svg onload='alert(1)'/>", "is not an image that can be read"),
        (own_picture()[:200], "is a broken image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
        (bytes(32 * 2**20 + 1), "larger than 32 MiB"),
        (own_picture((1, 1), "BMP").replace(b"\x01\0\0\0\x01\0\0\0", b"\x40\x1f\0\0" * 2, 1), "40 million pixels"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(data, says):
    with pytest.raises(UserError, match=says):
        explorer_html.own_picture(data)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://e.example/a.png",
        "data:image/png;base64,####",
        "data:image/svg+xml;base64,AAAA",
        "data:text/html;base64,AAAA",
        '" onerror="alert(1)',
        "data:image/jpeg;base64," + base64.b64encode(own_picture((225, 1), "JPEG")).decode(),
        "data:image/png;base64," + base64.b64encode(own_picture((9, 9), "GIF")).decode(),
        "data:image/png;base64," + "A" * 2**18,
    ],
)
def test_a_state_with_another_picture_is_refused(uri):
    with pytest.raises(UserError, match="upload it again"):
        State.from_json(json.dumps({"picture": uri}))


# -- search -----------------------------------------------------------------------------------------------------------


def test_suggestions_go_on_from_what_is_typed_the_most_clicked_first(views):
    assert views.suggest("RED") == ["red acme", "red thing", "red"]
    assert views.suggest("acme") == ["red acme", "blue acme", "<b>acme</b>"]
    assert views.suggest("never asked") == []


def test_results_are_those_of_the_retriever(views, retrievers):
    hits = views.search(State("red acme", "adaptive", k=9))
    assert hits["product_id"].tolist() == retrievers["adaptive"].search("red acme", 9)["product_id"].tolist()


def test_a_category_is_searched_exactly(views, retrievers):
    hits = views.search(State("red acme", "adaptive", k=7, category="dress"))
    everything = retrievers["adaptive"].search("red acme", 60)
    assert hits["product_id"].tolist() == everything.query("category == 'dress'")["product_id"].tolist()[:7]


def test_approximate_search_asks_an_approximate_index(views):
    assert views.index("adaptive", "exact").manifest["kind"] == "exact"
    assert views.index("adaptive", "approximate").manifest["kind"] == "hnsw"
    assert len(views.search(State("red acme", "adaptive", k=60, kind="approximate"))["row"].unique()) == 60


def test_marks_of_a_known_query(views, catalog):
    hits = views.search(State("  RED acme ", "adaptive", k=60)).set_index("product_id")
    assert hits.index[hits["clicked"]].sort_values().tolist() == ["p0", "p4"]
    for row, relevance in zip(hits["row"], hits["relevance"], strict=True):
        assert relevance == (1.0 if catalog.attributes["colour"].iloc[row] == "red" else 0.5)
    assert hits["wishes"].iloc[0] in ("colour red ✓, brand acme ✓", "colour red ✗, brand acme ✓")
    assert views.search(State("never asked", "adaptive"))["relevance"].isna().all()


def test_more_like_this(views, retrievers):
    vectors = retrievers["adaptive"].vectors.embedding
    state = State("red acme", "adaptive", by="product", like="p5")
    assert views.search(state)["product_id"].iloc[0] == "p5"
    both = views.vector(State("red acme", "adaptive", by="both", like="p5"), "adaptive")
    summed = vectors[5] + retrievers["adaptive"].embed("red acme")
    np.testing.assert_allclose(both, summed / np.linalg.norm(summed), atol=1e-6)
    pixels, _ = retrievers["adaptive"].catalog.images(32)
    alone = retrievers["adaptive"].model.encode_products([""], pixels[5:6], np.ones(1, bool)).embedding[0]
    np.testing.assert_allclose(
        views.vector(State(variant="adaptive", by="image", like="p5"), "adaptive"), alone, atol=1e-6
    )


@pytest.mark.parametrize(
    ("like", "variant", "says"), [("p7", "adaptive", "has no image"), ("p5", "title", "does not look at images")]
)
def test_searching_by_an_image_that_is_not_there(views, like, variant, says):
    with pytest.raises(UserError, match=says):
        views.vector(State(variant=variant, by="image", like=like), variant)


def test_searching_by_ones_own_picture_is_searching_by_its_pixels(views, retrievers, tmp_path):
    (tmp_path / "own.webp").write_bytes(own_picture())
    page = QueryExplorer(retrievers, queries=["red"]).page(picture=tmp_path / "own.webp", k=4)
    uri = explorer_html.own_picture(tmp_path / "own.webp")
    model = retrievers["adaptive"].model
    pixels = fit(explorer_html.decoded(uri), model.config.image_size)[None]
    wanted = model.encode_products([""], pixels, np.ones(1, bool)).embedding[0]
    state = State(variant="adaptive", by="picture", picture=uri, k=4)
    np.testing.assert_allclose(views.vector(state, "adaptive"), wanted, atol=1e-6)
    assert views.search(state)["relevance"].isna().all()
    assert page.data == views.page(state)
    assert 'alt="your picture"' in page.data
    assert inert(page.data)
    with pytest.raises(UserError, match="upload one first"):
        views.check(State(by="picture"))
    with pytest.raises(UserError, match="does not look at images"):
        views.vector(state, "title")


def test_what_takes_time_is_made_once(retrievers):
    """Two threads that ask for the same index get one; whoever asks for another does not wait."""
    going, made = threading.Event(), []

    @once
    def make(name):
        made.append(name)
        assert name == "quick" or going.wait(20)
        return object()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        slow = [pool.submit(make, "slow") for _ in range(2)]
        assert pool.submit(make, "quick").result(20)
        going.set()
        assert slow[0].result(20) is slow[1].result(20)
    assert sorted(made) == ["quick", "slow"]


# -- why --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["adaptive", "title", "joint"])
def test_words_and_patches_equal_one_question_at_a_time(retrievers, variant):
    retriever, row = retrievers[variant], 5
    query = retriever.embed("red acme")
    found = explain.evidence(retriever, query, row, grid=4)
    title = retriever.catalog.products["title"].iloc[row]
    pixels, _ = retriever.catalog.images(32)

    def score(text, picture):
        return retriever.model.encode_products([text], picture[None], np.ones(1, bool)).embedding[0] @ query

    base = score(title, pixels[row])
    assert found.score == pytest.approx(base, abs=1e-3)  # what is kept is kept in half precision
    for i, (word, fall) in enumerate(found.words):
        rest = title.split()
        assert rest.pop(i) == word
        assert fall == pytest.approx(base - score(" ".join(rest), pixels[row]), abs=1e-5)
    for i in range(4):
        for j in range(4):
            covered = np.array(pixels[row])
            covered[max(0, 8 * i - 4) : 8 * i + 12, max(0, 8 * j - 4) : 8 * j + 12] = 128
            assert found.heat[i, j] == pytest.approx(base - score(title, covered), abs=1e-5)
    if variant == "title":
        assert np.abs(found.heat).max() < 1e-6


def test_rank_counts_the_whole_catalogue(retrievers):
    retriever = retrievers["adaptive"]
    query = retriever.embed("red acme")
    rows, _ = retriever.index.search(query[None], 60)
    for place, row in enumerate(rows[0], start=1):
        assert explain.rank(retriever, query, float(retriever.vectors.embedding[row] @ query), row) == place
    assert explain.rank(retriever, query, 2.0, 5) == 1
    assert explain.rank(retriever, query, -2.0, 5) == 60


def test_parts_add_up_and_joint_has_none(retrievers):
    found = explain.evidence(retrievers["adaptive"], retrievers["adaptive"].embed("red"), 5)
    assert found.parts.sum() == pytest.approx(found.score, abs=1e-6)
    assert np.isnan(explain.evidence(retrievers["joint"], retrievers["joint"].embed("red"), 5).parts).all()


def test_what_if(retrievers):
    retriever = retrievers["adaptive"]
    query = retriever.embed("red acme")
    before, same = explain.what_if(retriever, query, 5)
    assert (same.rank, same.score) == (before.rank, pytest.approx(before.score, abs=1e-6))
    _, blank = explain.what_if(retriever, query, 5, blank=True)
    assert blank.weights.tolist() == [1, 0]
    _, untitled = explain.what_if(retriever, query, 5, title="")
    assert untitled.weights.tolist() == [0, 1]
    _, edited = explain.what_if(retriever, query, 5, title="another thing")
    assert edited.score != pytest.approx(before.score, abs=1e-4)


def test_a_product_without_title_or_image_is_explained(views):
    assert "There is no title." in views.why(views.check(State("red", "adaptive", selected="p3")))
    assert "There is no image." in views.why(views.check(State("red", "adaptive", selected="p7")))


def test_heat_map_colours_follow_the_sign():
    heat = np.zeros((4, 4))
    heat[0, 0], heat[3, 3] = 1.0, -1.0
    drawn = np.asarray(explorer_html.heat_map(Image.new("RGB", (32, 32), "white"), heat)).astype(int)
    assert drawn[8, 8, 0] > drawn[8, 8, 2] + 50  # orange: more red than blue
    assert drawn[-8, -8, 2] > drawn[-8, -8, 0] + 50


# -- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compare", [None, "title", "joint"])
@pytest.mark.parametrize("variant", ["adaptive", "joint"])
def test_pages_of_a_hostile_catalogue_are_inert(views, variant, compare):
    for selected in (None, "p53", 'p<b>"59"</b>'):
        state = State("<b>acme</b>", variant, k=60, compare=compare, selected=selected, title=HOSTILE[0], category=None)
        page = views.page(state)
        assert inert(page)
        assert HOSTILE[0] in Tags(page).text  # said, not done
    assert inert(views.page(State("x", variant, category="<i>bag</i>", by="both", like='p<b>"59"</b>')))


@given(st.text(max_size=60))
def test_untrusted_text_stays_text(value):
    between = explorer_html.text(value)
    assert set(Tags(between).tags) <= {"bdi"}
    if value.strip():
        assert between.startswith("<bdi>")
        assert between.endswith("</bdi>")
    inside = Tags(f'<img alt="{explorer_html.attribute(value)}">')
    assert [name for name, _ in inside.attributes] == ["alt"]
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", explorer_html.attribute(value))


def test_every_rule_of_the_style_sheet_is_confined():
    rules = re.sub(r"/\*.*?\*/", "", explorer_html.style(), flags=re.S).removeprefix("<style>").removesuffix("</style>")
    rules = re.sub(r"@keyframes mkx-\w+ \{ to \{[^}]*\} \}|@(container|media)[^{]*", "", rules)
    for selectors in re.findall(r"([^{}]+)\{", rules):
        for selector in filter(str.strip, selectors.split(",")):
            assert selector.strip().startswith(".mkx"), selector
    assert "url(" not in rules
    assert "@import" not in rules


def test_a_page_is_a_pure_function_of_the_state(views, retrievers):
    state = State("red acme", "adaptive", compare="title", selected="p5", blank=True)
    assert views.page(state) == views.page(state) == Views(retrievers).page(state)


def test_side_by_side_says_where_each_product_went(views):
    page = views.versus(State("red acme", "adaptive", k=8, compare="title"))
    left = views.search(State("red acme", "title", k=60))["product_id"].tolist()
    right = views.search(State("red acme", "adaptive", k=60))["product_id"].tolist()
    moves = re.findall(r'data-product="([^"]*)".*?class="mkx-move[^>]*>(?:<i>)?(→|▲|▼|=)(?:</i>)? ?(\d*)<', page)
    moves = [(html.unescape(product), sign, number) for product, sign, number in moves]
    assert [product for product, _, _ in moves] == left[:8] + right[:8]
    for product, sign, number in moves[8:]:
        step = left.index(product) - right.index(product)
        assert (sign, number) == (("▲", str(step)) if step > 0 else ("▼", str(-step)) if step < 0 else ("=", ""))
    for product, sign, number in moves[:8]:
        assert (sign, int(number)) == ("→", right.index(product) + 1)


def test_joint_says_that_it_has_no_weights(views):
    assert "no weights" in views.page(State("red acme", "joint"))
    assert "does not split" in views.page(State("red acme", "joint", selected="p5"))


def test_missing_title_and_image_are_said(views):
    page = views.page(State("red acme", "adaptive", k=60))
    assert page.count("no image") == 6
    assert page.count("no title") == 5


# -- the explorer -----------------------------------------------------------------------------------------------------


def test_the_widget_and_its_static_twin_are_two_outputs(explorer, monkeypatch):
    """One output with both would show only the widget, also where its kernel is gone."""
    shown = []
    monkeypatch.setattr(live_module, "display", lambda *what, raw=False: shown.append(what[0]))
    explorer._ipython_display_()
    assert shown[0] is explorer.widget
    assert "Colour" in shown[1]["text/html"]
    assert 'class="mkx-twin"' in shown[1]["text/html"]
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    explorer._ipython_display_()
    assert shown[2:] == [explorer.widget]
    monkeypatch.setenv("MAKELIB_HEADLESS", "1")
    explorer._ipython_display_()
    assert set(shown[3]) == {"text/html", "text/plain"}
    assert inert(shown[3]["text/html"])


def test_an_explorer_that_is_shown_anew_in_its_cell_lets_the_old_one_go(retrievers, monkeypatch):
    class Shell:
        parent_header: ClassVar = {"metadata": {"cellId": "one"}}

    monkeypatch.setattr(live_module, "display", lambda *what, raw=False: None)
    monkeypatch.setattr(live_module, "get_ipython", Shell)
    monkeypatch.setattr(live_module, "_SHOWN", {})
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    kept = []
    for _ in range(3):
        explorer = QueryExplorer(retrievers, queries=["red"])
        explorer._ipython_display_()
        explorer._ipython_display_()  # the same one again stays
        assert explorer.widget.comm is not None
        kept.append(weakref.ref(explorer))
    del explorer
    gc.collect()
    assert [old() is None for old in kept] == [True, True, False]


def test_explorers_of_one_run_share_models_and_thumbnails(saved_run):
    one, two = QueryExplorer("mine", queries=["red"]), QueryExplorer(saved_run, queries=["red"])
    assert one.views is two.views
    arm = saved_run.arm("make", "title", 0)
    (arm.folder / "arm.json").unlink()
    assert QueryExplorer("mine", queries=["red"]).views.names == ["full, seed 0"]


def test_a_query_of_unknown_words_is_called_a_guess(views, explorer):
    for query, guess in (
        ("zzzq xxyx", True),
        ("red zzzq", False),
        ("thing", True),
        ("acme", False),
        ("", False),
        ("红色", True),
    ):
        said = views.page(State(query, "adaptive", k=3))
        assert ("No word of this query stands in a title" in said) is guess
        assert said.find("these are guesses") < said.find("<article")
    assert explorer.widget
    explorer.query.value = "zzzq"
    assert "these are guesses" in explorer.line.value


def test_buttons_are_named_after_their_products(explorer):
    assert explorer.widget
    for query in ("red acme", "blue acme"):
        explorer.query.value = query
        titles = explorer.views.search(explorer.state)["title"]
        for place, (cell, title) in enumerate(zip(explorer.cards.children, titles, strict=True), start=1):
            _, why, like = cell.children
            name = explorer_html.plain(title or "a product without a title")
            assert (why.description, like.description) == (f"Why? {place}, {name}", f"More like this: {name}")


def test_a_tile_costs_four_messages(explorer, monkeypatch):
    """A kernel's socket keeps a thousand for a busy server and drops the rest: a page of 200 tiles lacked 34 of them."""
    assert explorer.widget
    sent = []
    monkeypatch.setattr(comm.DummyComm, "publish_msg", lambda self, kind, **what: sent.append(kind))
    for k, query, new in ((24, "red acme", 18), (24, "blue acme", 0), (6, "acme", 0), (24, "acme", 0)):
        sent.clear()
        explorer.show(query=query, k=k)
        assert len(explorer.cards.children) == k
        assert sent.count("comm_open") == 4 * new
        assert sent.count("comm_msg") <= 3 * (k - new) + 25


def test_the_keyboard_reaches_a_rank_right_after_the_query(explorer):
    line = explorer.widget.children[1].children
    assert line[:2] == (explorer.query, explorer.explain)


def test_a_typed_query_fills_the_tiles(explorer):
    explorer.widget.layout  # noqa: B018  made now
    explorer.query.value = "blue acme"
    shown = [cell.children[0].value for cell in explorer.cards.children]
    assert shown == explorer.views.shown(State("blue acme", "adaptive", k=6))[1]
    explorer.k.value = 24
    assert len(explorer.cards.children) == 24
    explorer.category.value = "dress"
    assert explorer.state.category == "dress"
    explorer.category.value = ""
    assert explorer.state.category is None
    assert explorer.history == ["red acme", "blue acme"]
    assert json.loads(explorer.asked.value) == explorer.history


def test_buttons_and_ranks_choose_a_product(explorer):
    assert explorer.widget
    explorer.cards.children[2].children[1].click()
    third = explorer.views.search(explorer.state)["product_id"].iloc[2]
    assert (explorer.state.selected, explorer.explain.value) == (third, 3)
    assert "Words that matter" in explorer.panel.value
    explorer.explain.value = 1
    assert explorer.state.selected == explorer.views.search(explorer.state)["product_id"].iloc[0]
    explorer.blank.value = True
    assert "without its image" in explorer.edited.value
    explorer.cards.children[0].children[2].click()
    assert (explorer.state.by, explorer.state.selected, explorer.state.blank) == ("product", None, False)
    explorer.query.value = "blue acme"
    assert (explorer.state.by, explorer.state.like) == ("query", None)


def test_editing_the_title_and_going_back(explorer):
    assert explorer.widget
    explorer.show(selected="p5")
    own = explorer.title.value
    explorer.title.value = "something else"
    assert "with this title" in explorer.edited.value
    explorer.title.value = own
    assert explorer.state.title is None
    assert explorer.edited.value == ""


def test_side_by_side_takes_the_place_of_the_tiles(explorer):
    assert explorer.widget
    explorer.compare.value = "title"
    assert not explorer.cards.children
    assert "mkx-versus" in explorer.beside.value
    explorer.compare.value = ""
    assert len(explorer.cards.children) == 6
    assert explorer.beside.value == ""


def test_errors_in_callbacks_are_shown_as_sentences(explorer, monkeypatch):
    assert explorer.widget
    explorer.saved.value = '{"query": 3}'
    explorer.restore.click()
    assert "not a saved state" in explorer.alert.value
    explorer.query.value = "blue"
    assert explorer.alert.value == ""

    def broken(*_):
        raise ZeroDivisionError("<b>oh</b>")

    monkeypatch.setattr(explorer.views, "search", broken)
    explorer.query.value = "red"
    assert "ZeroDivisionError" in explorer.alert.value
    assert inert(explorer.alert.value)


def test_a_state_travels_through_a_file(explorer, retrievers, tmp_path):
    explorer.show(query="blue acme", k=24, compare="title", selected="p5")
    path = explorer.save(tmp_path / "state.json")
    again = QueryExplorer(retrievers, queries=["red"], state=path)
    assert again.state == explorer.state
    assert again.widget
    assert (again.query.value, again.k.value, again.compare.value, again.category.value) == (
        "blue acme",
        24,
        "title",
        "",
    )


def in_a_kernel(scene):
    """Play a scene in a running loop, as in a kernel; what it waits for must come true soon."""

    async def until(condition):
        while not condition():
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(scene(until), 20))


def test_a_newer_query_takes_over(explorer):
    """While a search runs, something says so; a newer query is answered first, and the overtaken one never shown."""
    assert explorer.widget
    going, shown, drawn = threading.Event(), explorer.views.shown, []
    explorer.line.observe(lambda change: drawn.append(change["new"]), "value")

    def slowly(state):
        assert state.query != "slow" or going.wait(20)
        return shown(state)

    explorer.views.shown = slowly

    async def scene(until):
        explorer.show(query="slow", selected="p5")
        overtaken = explorer._drawing
        await until(lambda: "Searching" in explorer.line.value)
        explorer.show(query="second", selected="p5")
        await until(lambda: "second" in explorer.line.value and "rank" in explorer.panel.value)
        going.set()
        await asyncio.gather(overtaken, explorer._drawing)

    in_a_kernel(scene)
    assert not any("slow" in line for line in drawn)
    assert explorer.history == ["red acme", "second"]


def test_what_had_to_queue_and_was_overtaken_is_never_asked(explorer):
    assert explorer.widget
    going, shown, searched = threading.Event(), explorer.views.shown, []

    def slowly(state):
        searched.append(state.query)
        assert state.query != "slow" or going.wait(20)
        return shown(state)

    explorer.views.shown = slowly

    async def scene(until):
        asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        for query in ("slow", "second", "third"):
            explorer.show(query=query)
            await until(lambda: searched == ["slow"])
            await asyncio.sleep(0)
        going.set()
        await until(lambda: "third" in explorer.line.value)

    in_a_kernel(scene)
    assert searched == ["slow", "third"]


def test_typing_is_searched_when_no_key_follows_and_enter_at_once(explorer, monkeypatch):
    assert explorer.widget
    searched, shown = [], explorer.views.shown
    explorer.views.shown = lambda state: searched.append(state.query) or shown(state)

    async def scene(until):
        for end in range(1, 5):
            explorer.query.value = "blue acme"[:end]
        await until(lambda: "blue" in explorer.line.value)
        assert searched == ["blue"]
        assert explorer.query.options == ("blue acme",)
        monkeypatch.setattr("makelib.workbook.explorer.widget.DEBOUNCE", 1000)
        explorer.query.value = "blue acme"
        explorer.query._handle_custom_msg({"event": "submit"}, [])
        await until(lambda: "blue acme" in explorer.line.value)

    in_a_kernel(scene)
    assert searched == ["blue", "blue acme"]
    assert explorer.history == ["red acme", "blue acme"]


def test_no_key_is_lost_between_two_threads(explorer):
    """JupyterLab hands the first key to the kernel's thread and the next to one of its own, where suggesting may take longer
    than the pause after which the first is searched."""
    assert explorer.widget
    began, suggest, shown, searched = threading.Event(), explorer.views.suggest, explorer.views.shown, []

    def slowly(typed):
        if typed == "blue acme":
            began.set()
            time.sleep(3 * DEBOUNCE)
        return suggest(typed)

    explorer.views.suggest = slowly
    explorer.views.shown = lambda state: searched.append(state.query) or shown(state)

    async def next_key():
        explorer.query.value = "blue acme"
        await asyncio.sleep(2 * DEBOUNCE)
        await explorer._drawing

    async def scene(until):
        explorer.query.value = "blue acm"
        other = threading.Thread(target=asyncio.run, args=(next_key(),))
        other.start()
        await until(began.is_set)
        await asyncio.sleep(2 * DEBOUNCE)  # the first key's pause ends while the next one is being heard
        await asyncio.to_thread(other.join)

    in_a_kernel(scene)
    assert (explorer.query.value, explorer.state.query) == ("blue acme", "blue acme")
    assert searched == ["blue acme"]
    assert "blue acme" in explorer.line.value


def test_what_is_typed_stays_when_something_else_is_drawn(explorer):
    assert explorer.widget

    async def scene(until):
        explorer.query.value = "blue acme"
        explorer.cards.children[2].children[1].click()  # within the pause
        assert explorer.query.value == "blue acme"
        await until(lambda: "blue acme" in explorer.line.value)

    in_a_kernel(scene)
    explorer.show(query="red acme")
    assert explorer.query.value == "red acme"


def test_history_keeps_whole_queries(explorer):
    """What is typed on replaces its beginning, what is taken back leaves no trace, what was entered stays."""
    assert explorer.widget
    for typed in ("g", "gr", "green", "gre", "b", "blue"):
        explorer.query.value = typed
    assert explorer.history == ["red acme", "green", "blue"]
    explorer.query._handle_custom_msg({"event": "submit"}, [])
    explorer.query.value = "blue bag"
    assert explorer.history == ["red acme", "green", "blue", "blue bag"]


def test_an_uploaded_picture_is_searched_by(explorer, retrievers):
    assert explorer.widget
    upload = {"name": "<b>.webp", "type": "image/webp", "size": 9, "last_modified": datetime.datetime.now()}
    explorer.upload.value = ({**upload, "content": memoryview(own_picture())},)
    assert (explorer.state.by, explorer.by.value, explorer.upload.value) == ("picture", "picture", ())
    assert 'alt="your picture"' in explorer.line.value
    again = QueryExplorer(retrievers, state=State.from_json(explorer.state.to_json()))
    assert again.state == explorer.state
    explorer.upload.value = ({**upload, "content": memoryview(b"nothing")},)
    assert "is not an image" in explorer.alert.value
    explorer.query.value = "blue acme"
    assert (explorer.state.by, explorer.state.picture, explorer.by.options) == (
        "query",
        None,
        (("the query", "query"),),
    )


def test_page_explains_by_rank(explorer):
    page = explorer.page("red acme", rank=2, k=4).data
    assert "rank 2 of 60" in page
    with pytest.raises(UserError, match="ranks 1 to 4"):
        explorer.page("red acme", rank=5, k=4)


@pytest.fixture
def saved_run(catalog, retrievers, tmp_path, monkeypatch):
    """`reports/mine` with two arms, seen from the folder above `reports`."""
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(Path("reports/mine"), preset("smoke").replace(seeds=(0,)), catalog)
    for variant, fusion in (("full", "adaptive"), ("title", "title")):
        arm = experiment.arm("make", variant, 0)
        dataclasses.replace(retrievers[fusion], name=arm.label).save(arm.folder)
        (arm.folder / "arm.json").write_text(json.dumps({"scoring": scoring_key(arm.settings)}))
    write_yaml(experiment.settings, experiment.run / "settings.yaml")
    (experiment.run / "catalogue.json").write_text(json.dumps({"folder": os.path.relpath(catalog.folder)}))
    return experiment


def test_a_run_is_opened_by_name(saved_run, retrievers, tmp_path, monkeypatch):
    """Every trained arm of it, the whole method first; what is no run is refused in a sentence."""
    for run in ("mine", "reports/mine", tmp_path / "reports" / "mine"):
        opened = Views(run)
        assert opened.names == ["full, seed 0", "title, seed 0"]
    assert opened.open("full, seed 0").vectors.embedding.tobytes() == retrievers["adaptive"].vectors.embedding.tobytes()
    assert QueryExplorer("mine", queries=["red"]).save() == tmp_path / "reports" / "mine" / "explorer.json"
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where a notebook of one's own stands
    assert Views("mine").names == opened.names
    with pytest.raises(UserError, match="no run in yours or reports/yours"):
        QueryExplorer("yours")


def test_retrievers_of_two_catalogues_are_refused(retrievers, tiny_catalog):
    other = Retriever.build("other", retrievers["title"].model, tiny_catalog)
    with pytest.raises(UserError, match="one catalogue"):
        Views({"a": retrievers["title"], "b": other})
    with pytest.raises(UserError, match="at least one"):
        Views({})


def test_telling_queries_follow_their_rules(retrievers):
    chosen = telling_queries(retrievers["adaptive"])
    assert set(chosen.values()) <= {"red thing", "<b>acme</b>", "red"}
    assert len(set(chosen.values())) == len(chosen)
    strange = [query for caption, query in chosen.items() if "no title uses" in caption]
    assert strange in (["red thing"], ["red"], [])


# -- several photographs of one product -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def album(catalog, tmp_path_factory):
    """The first twelve hostile products; row 4 has two further photographs, those of rows 0 and 1."""
    cells = pq.read_table(catalog.folder / "products.parquet")["image"].to_pylist()[:12]
    products = catalog.products.iloc[:12].assign(
        image=cells, images=[[cells[0], cells[1]] if i == 4 else None for i in range(12)]
    )
    query_ids, product_ids = (catalog.queries["query_id"].to_numpy(), products["product_id"].to_numpy())
    clicks = catalog.interactions[catalog.interactions["product"] < 12]
    return write_catalog(
        tmp_path_factory.mktemp("album") / "catalogue",
        name="album",
        products=products,
        queries=catalog.queries,
        interactions=clicks.assign(query_id=query_ids[clicks["query"]], product_id=product_ids[clicks["product"]]),
    )


def test_photographs_are_left_out_one_by_one(album):
    retriever = untrained_retrievers(album)["adaptive"]
    torch.nn.init.normal_(retriever.model.image_pool.key)
    retriever = Retriever.build("stirred", retriever.model, album)
    query, model = retriever.embed("red acme"), retriever.model
    found = explain.evidence(retriever, query, 4)
    own = album.photographs(4, 32)
    assert own.shape == (3, 32, 32, 3)

    def score(images):
        title, further = album.products["title"][4], (images[1:], np.zeros(len(images) - 1, np.int64))
        return model.encode_products([title], images[:1], np.ones(1, bool), further).embedding[0] @ query

    assert score(own) == pytest.approx(found.score, abs=1e-3)
    falls = [score(own) - score(np.delete(own, place, axis=0)) for place in range(3)]
    np.testing.assert_allclose(found.images, falls, atol=1e-5)
    assert np.abs(falls).max() > 1e-3
    assert explain.evidence(retriever, query, 0).images.size == 0
    _, without = explain.what_if(retriever, query, 4, blank=True)
    assert without.weights[1] == 0


def test_the_why_panel_shows_all_photographs_of_a_product(album):
    views = Views(untrained_retrievers(album))
    ids = album.products["product_id"]
    page = views.why(State(query="red acme", variant="adaptive", selected=ids[4]))
    assert page.count('alt="Photograph ') == 3
    assert all(f'src="{views.thumbnail(4, place)}" alt="Photograph {place + 1}"' in page for place in range(3))
    assert len({views.thumbnail(4, place) for place in range(3)}) == 3
    assert "Photographs that matter" not in views.why(State(query="red acme", variant="adaptive", selected=ids[0]))
    assert "Photographs that matter" not in views.why(State(query="red acme", variant="title", selected=ids[4]))
    like = views.vector(State(by="image", like=ids[4], variant="adaptive"), "adaptive")
    retriever, own = views.open("adaptive"), album.photographs(4, 32)
    several = retriever.model.encode_products([""], own[:1], np.ones(1, bool), (own[1:], np.zeros(2, np.int64)))
    np.testing.assert_allclose(like, several.embedding[0], atol=1e-6)
