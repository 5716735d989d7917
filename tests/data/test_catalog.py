"""The three tables: what is written is read back, what does not fit is refused, relevance equals its definition."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from makelib.data.catalog import Catalog
from makelib.data.pictures import fit, opened
from makelib.data.tables import check_target, write_catalog
from makelib.runtime import UserError


def png(colour, size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def tables():
    products = pd.DataFrame(
        {
            "product_id": ["a", "b", "c"],
            "title": ["red dress", None, "blue shoe"],
            "image": [png("red"), None, png("blue")],
            "category": ["dress", None, "shoe"],
            "attributes": [{"colour": "red", "type": "dress"}, None, {"colour": "blue", "type": "shoe"}],
            "group": ["g", None, "g"],
        }
    )
    queries = pd.DataFrame(
        {
            "query_id": ["1", "2", "3"],
            "query": ["red dress", "shoe", "anything"],
            "split": ["train", "test", "test"],
            "constraints": [{"colour": "red", "type": "dress"}, {"type": "shoe"}, None],
        }
    )
    interactions = pd.DataFrame(
        {"query_id": ["1", "3"], "product_id": ["a", "b"], "label": [1.0, 0.5], "kind": ["click", "judgment"]}
    )
    return {"products": products, "queries": queries, "interactions": interactions}


def test_what_is_written_is_read_back(tmp_path):
    written = write_catalog(tmp_path / "c", name="c", **tables(), info={"generated_queries": True})
    catalog = Catalog.open(tmp_path / "c")
    assert catalog.fingerprint == written.fingerprint
    assert catalog.info["generated_queries"] is True
    assert catalog.products["title"].fillna("").tolist() == ["red dress", "", "blue shoe"]
    assert catalog.attributes.iloc[0].to_dict() == {"colour": "red", "type": "dress"}
    assert catalog.attributes.iloc[1].isna().all()
    assert catalog.groups.tolist() == [0, 1, 0]
    assert catalog.seen.tolist() == [True, False, True]  # c is a further listing of a
    assert catalog.image(1) is None
    assert catalog.image(0).size == (8, 6)
    assert [array.tolist() for array in catalog.clicks("train")] == [[0], [0]]


def test_images_are_fitted_and_kept(tmp_path):
    catalog = write_catalog(tmp_path / "c", name="c", **tables())
    pixels, present = catalog.images(8)
    assert pixels.shape == (3, 8, 8, 3)
    assert present.tolist() == [True, False, True]
    assert pixels[0, 4, 4].tolist() == [255, 0, 0]
    assert pixels[0, 0, 4].tolist() == [255, 255, 255]  # 8 x 6 in a square of 8: white above
    kept = list((tmp_path / "c" / ".cache").glob("images-*-8.npy"))
    assert len(kept) == 1
    stamp = kept[0].stat().st_mtime_ns
    catalog.images(8)
    assert kept[0].stat().st_mtime_ns == stamp


def test_further_images_stand_in_the_order_of_products(tmp_path):
    given = tables()
    given["products"]["images"] = [[png("green"), png("white")], None, [png("black")]]
    catalog = write_catalog(tmp_path / "c", name="c", **given)
    pixels, owner = catalog.further_images(8)
    assert owner.tolist() == [0, 0, 2]
    assert [picture[4, 4].tolist() for picture in pixels] == [[0, 128, 0], [255, 255, 255], [0, 0, 0]]
    assert catalog.images(8)[0][0, 4, 4].tolist() == [255, 0, 0]  # the first one as before
    assert "images" not in catalog.products


def test_a_catalogue_without_further_images_opens_whenever_it_was_written(tmp_path):
    catalog = write_catalog(tmp_path / "c", name="c", **tables())
    assert [len(part) for part in catalog.further_images(8)] == [0, 0]
    table = pq.read_table(tmp_path / "c" / "products.parquet").drop_columns("images")
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "c" / "products.parquet")
    older = Catalog.open(tmp_path / "c")
    assert [part.shape for part in older.further_images(8)] == [(0, 8, 8, 3), (0,)]


def test_a_large_photograph_is_decoded_small_and_looks_the_same(tmp_path):
    ramp = np.add.outer(np.arange(1200), np.arange(1600)) * 255 // 2800
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).convert("RGB").save(buffer, "JPEG", quality=95)
    assert opened(buffer.getvalue()).size == (1600, 1200)
    assert opened(buffer.getvalue(), 100).size == (400, 300)  # halved while 200 pixels are left
    small, whole = (fit(opened(buffer.getvalue(), size), 100).astype(int) for size in (100, None))
    assert np.abs(small - whole).max() <= 4
    given = tables()
    given["products"].at[0, "image"] = {"bytes": buffer.getvalue(), "path": None}
    catalog = write_catalog(tmp_path / "c", name="c", **given)
    assert catalog.image(0).size == (1600, 1200)
    assert catalog.image(0, size=100).size == (400, 300)


def test_relevance_counts_constraints_and_falls_back_to_judgments(tmp_path):
    catalog = write_catalog(tmp_path / "c", name="c", **tables())
    np.testing.assert_allclose(catalog.relevance([0, 1, 2, 0]), [[1, 0, 0], [0, 0, 1], [0, 0.5, 0], [1, 0, 0]])
    np.testing.assert_allclose(catalog.relevance([2, 0], [1, 0]), [[0.5, 0], [0, 1]])
    pages = np.array([[1, 0], [2, 1], [0, 2], [1, 1]])  # each query's own products
    whole = catalog.relevance([0, 1, 2, 0])
    np.testing.assert_array_equal(catalog.relevance([0, 1, 2, 0], pages), np.take_along_axis(whole, pages, axis=1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_relevance_equals_a_loop(tmp_path_factory, seed):
    random = np.random.default_rng(seed)
    values, keys = ["x", "y", "z"], ["k1", "k2", "k3"]

    def some():
        return {key: str(random.choice(values)) for key in keys if random.random() < 0.6}

    attributes, constraints = [some() for _ in range(6)], [some() or {"k1": "x"} for _ in range(4)]
    catalog = write_catalog(
        tmp_path_factory.mktemp("relevance") / "c",
        name="c",
        products=pd.DataFrame({"product_id": list("abcdef"), "title": "t", "attributes": attributes}),
        queries=pd.DataFrame({"query_id": list("1234"), "query": "q", "split": "test", "constraints": constraints}),
        interactions=pd.DataFrame({"query_id": ["1"], "product_id": ["a"], "label": [1.0], "kind": ["click"]}),
    )
    expected = [[sum(a.get(k) == v for k, v in c.items()) / len(c) for a in attributes] for c in constraints]
    np.testing.assert_allclose(catalog.relevance(np.arange(4)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("products", "product_id", "a", "product_id 'a' stands on more than one row"),
        ("queries", "split", "dev", "split 'dev' is unknown"),
        ("interactions", "kind", "purchase", "kind 'purchase' is unknown"),
        ("interactions", "product_id", "zz", "'zz' is named but stands in no row"),
        ("interactions", "query_id", "99", "'99' is named but stands in no row"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_old_catalogue_stays(tmp_path, table, column, value, message):
    old = write_catalog(tmp_path / "c", name="c", **tables())
    bad = tables()
    bad[table].loc[1, column] = value
    with pytest.raises(UserError, match=message):
        write_catalog(tmp_path / "c", name="c", **bad)
    assert Catalog.open(tmp_path / "c").fingerprint == old.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["c"], "no draft is left behind"


def test_a_catalogue_takes_the_place_of_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "catalogue.json").write_text("{}")
    for free in ("new", "empty", "old"):
        check_target(tmp_path / free)
    for taken in (tmp_path / "letters", tmp_path / "letters" / "dear.txt", type(tmp_path)(".")):
        with pytest.raises(UserError, match="is no catalogue; choose another --out"):
            check_target(taken)


def test_opening_what_is_no_catalogue(tmp_path):
    with pytest.raises(UserError, match=r"not a catalogue.*products.parquet.*makelib data"):
        Catalog.open(tmp_path)
    write_catalog(tmp_path / "c", name="c", **tables())
    pd.DataFrame({"product_id": ["a"]}).to_parquet(tmp_path / "c" / "products.parquet")
    with pytest.raises(UserError, match=r"lacks the column\(s\) attributes"):
        Catalog.open(tmp_path / "c")
    (tmp_path / "c" / "products.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(UserError, match="Cannot read"):
        Catalog.open(tmp_path / "c")


def test_an_interrupted_cache_is_never_half(tmp_path, monkeypatch):
    catalog = write_catalog(tmp_path / "c", name="c", **tables())
    monkeypatch.setattr("makelib.data.catalog.fit", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        catalog.images(8)
    monkeypatch.undo()
    assert catalog.images(8)[1].sum() == 2
    assert not [path for path in (tmp_path / "c" / ".cache").iterdir() if path.name.startswith(".images")]


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (3, 3), (200, 100)])
def test_fit_keeps_the_aspect_and_the_square(size):
    fitted = fit(Image.new("RGB", size, "black"), 10)
    assert fitted.shape == (10, 10, 3)
    dark = (fitted < 128).all(axis=2)
    assert dark.any()
    assert dark.sum() <= 100


def test_the_fingerprint_follows_the_content(tmp_path):
    one = write_catalog(tmp_path / "one", name="one", **tables())
    two = write_catalog(tmp_path / "two", name="two", **tables())
    other = tables()
    other["products"].loc[0, "title"] = "green dress"
    three = write_catalog(tmp_path / "three", name="three", **other)
    assert one.fingerprint == two.fingerprint != three.fingerprint
    assert json.loads((tmp_path / "one" / "catalogue.json").read_text())["name"] == "one"


@pytest.mark.parametrize("name", ["shop [2]", "best $HOME", "a {b}", "x::y", "50 % #1", 'it\'s "it"', "目录 é", "*?"])
def test_a_folder_may_have_any_name(tmp_path, name):
    for beside in ("shop 2", "a b", "x"):
        write_catalog(tmp_path / beside, name="beside", **tables())
    catalog = write_catalog(tmp_path / name, name="this one", **tables())
    opened = Catalog.open(tmp_path / name)
    assert (opened.name, len(opened), opened.fingerprint) == ("this one", 3, catalog.fingerprint)
    assert opened.images(8)[1].tolist() == [True, False, True]


def test_photographs_are_found_one_by_one_as_in_turn(tmp_path):
    given = tables()
    many = pd.concat([given["products"]] * 200, ignore_index=True)
    many["product_id"] = [f"p{row}" for row in range(len(many))]
    many["images"] = [[png((row % 256, 0, 0))] * (row % 3) for row in range(len(many))]
    catalog = write_catalog(
        tmp_path / "c", name="c", **given | {"products": many, "interactions": given["interactions"][:0]}
    )
    in_turn = list(catalog._pixels)
    assert in_turn == [catalog._pixels[row] for row in range(len(many))]
    assert [len(own) - 1 for own in in_turn] == catalog._pixels.further.tolist() == [row % 3 for row in range(600)]
    assert [own[0] is not None for own in in_turn] == catalog.present[:, 1].tolist()


def test_what_is_open_stays_one_edition_while_another_takes_its_place(tmp_path):
    """Photographs and attributes are read when they are asked for, which may be after an import wrote the folder anew."""
    before = write_catalog(tmp_path / "c", name="c", **tables())
    other = tables()
    other["products"] = pd.concat([other["products"][::-1]] * 3, ignore_index=True).assign(
        product_id=[*"cbaxyzuvw"], image=[png("green")] * 9, attributes=[{"size": "xl"}] * 9
    )
    after = write_catalog(tmp_path / "c", name="c", **other)
    assert [before.image(row) and before.image(row).getpixel((0, 0)) for row in range(3)] == [
        (255, 0, 0),
        None,
        (0, 0, 255),
    ]
    assert before.present.tolist() == [[True, True], [False, False], [True, True]]
    assert before.attributes["colour"].tolist() == ["red", np.nan, "blue"]
    assert before.images(8)[1].tolist() == [True, False, True]
    assert [after.image(row).getpixel((0, 0)) for row in range(9)] == [(0, 128, 0)] * 9


def test_two_processes_decode_the_same_photographs_once(tmp_path):
    write_catalog(tmp_path / "c", name="c", **tables())
    program = "import sys; from makelib import Catalog; print(Catalog.open(sys.argv[1]).images(8)[1].sum())"
    calls = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "c")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [call.communicate()[0].strip() for call in calls] == ["2"] * 3
    assert len(list((tmp_path / "c" / ".cache").glob("*.npy"))) == 2


def test_what_is_kept_is_made_once_whole_and_shared(tmp_path, tiny_catalog):
    catalog = dataclasses.replace(tiny_catalog, folder=tmp_path)
    made = []

    def make():
        made.append(len(made))
        return {"numbers": np.arange(4) + len(made), "none": np.zeros((0, 3), np.int32)}

    def broken():
        yield from make().items()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.kept("table", lambda: dict(broken()), 1, ("data/text.py",))
    assert not list(tmp_path.glob(".cache/*"))
    for _ in range(2):
        kept = catalog.kept("table", make, 1, ("data/text.py",))
    assert made == [0, 1]
    assert kept["numbers"].tolist() == [2, 3, 4, 5]
    assert kept["none"].shape == (0, 3)
    assert isinstance(kept["numbers"], np.memmap)
    catalog.kept("table", make, 2, ("data/text.py",))
    catalog.kept("table", make, 1, ("data/tables.py",))
    dataclasses.replace(catalog, fingerprint="other").kept("table", make, 1, ("data/text.py",))
    assert len(made) == 5


def test_processes_that_want_the_same_table_make_it_once(tmp_path):
    """Four begin at the same moment; each adds a line where it makes the table."""
    program = """
import sys, time
from pathlib import Path
import numpy as np
from makelib.data.catalog import Catalog

catalog = Catalog(Path(sys.argv[1]), "many", "many", {}, *[None] * 6)

def make():
    with open(sys.argv[1] + "/made", "a") as log:
        log.write("made\\n")
    time.sleep(0.5)
    return {"numbers": np.arange(1000)}

assert catalog.kept("table", make, 0, ("data/text.py",))["numbers"].sum() == 499500
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert (tmp_path / "made").read_text() == "made\n"
