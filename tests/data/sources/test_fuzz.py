"""Whatever comes in, in whatever file: rows in = kept + dropped + merged + left out, photographs named = read + listed with a reason."""

import datetime
import decimal
import json
import random

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exports import KINDS, health, shop, taken

#: the columns of a table of no system and of two systems: id, title, category, photographs, further ones or the parent
LAYOUTS = {
    "plain": ("product_id", "title", "type", "image", "images"),
    "shopify": ("Handle", "Title", "Type", "Image Src", "Variant Image"),
    "woo": ("ID", "Name", "Categories", "Images", "Parent"),
}
WORDS = ("", " ", "Acme", "<b>x</b>", "&amp;", "é", "a,b", "x|y", "\n", "'", '"', "\\", "[", "0", "7.0", "NaN", "\0", "-1e9", "👕", "A" * 300,
         "=1+1", "\u2028", "\ufeff", "a@b.example", "None", "\t")  # fmt: skip
PHOTOS = ("", "", "a0.jpg", "A1.JPG", "a2.jpg|a3.jpg", "none.jpg", "../x.jpg", "['a4.jpg', 'gone.jpg']", "https://x.example/1.jpg",
          '<img src="a1.jpg">', '{"src": "a2.jpg"}', "a0.jpg^a1.jpg", "nan", "|".join(f"a{i % 5}.jpg?{i}" for i in range(12)), "(", "text.jpg", "/9j/" + "A" * 300)  # fmt: skip
#: what stands in further columns, a type each
TYPED = {
    "whole": (pa.int64(), lambda draw: draw.randrange(-5, 5)),
    "price": (pa.decimal128(9, 2), lambda draw: decimal.Decimal(draw.randrange(10_000)) / 100),
    "weight": (pa.float64(), lambda draw: draw.choice((0.0, -1.5, float("nan"), float("inf"), 1e300))),
    "made": (pa.date32(), lambda draw: datetime.date(2020, 1, 1 + draw.randrange(28))),
    "changed": (pa.timestamp("us", "Europe/Berlin"), lambda draw: datetime.datetime(2024, 3, 1 + draw.randrange(28), tzinfo=datetime.UTC)),
    "new": (pa.bool_(), lambda draw: draw.random() < 0.5),
    "colour": (pa.dictionary(pa.int8(), pa.string()), lambda draw: draw.choice(("red", "blue", "green"))),
    "tags": (pa.list_(pa.string()), lambda draw: draw.sample(("a", "b", "ü"), draw.randrange(3))),
    "shape": (pa.struct({"w": pa.int8(), "of": pa.large_string()}), lambda draw: {"w": draw.randrange(9), "of": "wool"}),
    "nothing": (pa.null(), lambda draw: None),
}  # fmt: skip


def drawn(draw, count, layout):
    """Rows of all kinds; those of 40 more products are good."""
    keys = LAYOUTS[layout]
    rows = []
    for n in range(count):
        last = draw.choice((*PHOTOS, f"p{draw.randrange(count // 2)}") if layout == "woo" else PHOTOS)
        own = (draw.choice((f"p{draw.randrange(count // 2)}", f"p{n}", "", "id:7", str(n), f"{n}.0")), " ".join(draw.choices(WORDS, k=draw.randrange(4))),
               draw.choice(KINDS), draw.choice(PHOTOS), last)  # fmt: skip
        rows.append(dict(zip(keys, own, strict=True)))
    rows += [dict(zip(keys, (f"good{n}", f"Acme {n}", KINDS[n % 4], "a0.jpg", ""), strict=True)) for n in range(40)]
    draw.shuffle(rows)
    return [row | {name: draw.choice((None, of(draw))) for name, (_, of) in TYPED.items()} for row in rows]


def written(folder, rows, kind):
    """The rows as a table of that kind; what it cannot hold becomes what a program would write."""
    path = folder / f"products.{kind}"
    if kind in ("csv", "tsv"):
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    elif kind in ("json", "jsonl"):
        texts = [json.dumps(row, default=str) for row in rows]
        path.write_text("\n".join(texts) if kind == "jsonl" else f'{{"products": [{",".join(texts)}]}}')
    elif kind == "parquet":
        types = {name: TYPED.get(name, (pa.large_string(),))[0] for name in rows[0]}
        pq.write_table(pa.table({name: pa.array([row[name] for row in rows], of) for name, of in types.items()}), path)
    else:
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append(list(rows[0]))
        for row in rows:
            cells = [str(cell) if isinstance(cell, list | dict) else cell for cell in row.values()]
            cells = [cell.replace(tzinfo=None) if isinstance(cell, datetime.datetime) else cell for cell in cells]
            sheet.append([cell.replace("\0", "") if isinstance(cell, str) else cell for cell in cells])
        book.save(path)


def all_accounted_for(tmp, seed, count, layout, kind, limit):
    draw = random.Random(seed)
    rows = drawn(draw, count, layout)
    folder = shop(tmp / "raw", [], [f"a{i}.jpg" for i in range(5)])
    written(folder, rows, kind)
    asked = [
        {"query": f"a {KINDS[n % 4]}", "product_id": key}
        for n in range(500)
        for key in (f"good{n % 40}", f"p{n}", str(n))
    ]
    pd.DataFrame(asked).to_csv(folder / "interactions.csv", index=False)
    catalog = taken(folder, tmp / "out", limit=limit)
    told = health(catalog)
    account, images, clicks = told["products"], told["images"], told["interactions"]
    assert clicks["read"] == len(asked) == clicks["kept"] + clicks["dropped"] + clicks["left_out"]
    assert account["read"] == len(rows)
    assert account["read"] == account["kept"] + account["dropped"] + account.get("merged", 0) + account["left_out"]
    assert account["kept"] == len(catalog)
    read, lost = images["present"] + images["further"], sum(images["dropped"].values())
    assert images["named"] == read + lost + images["beyond_8_a_product"]
    assert images["named"] > read > 0
    listed = pd.read_csv(catalog.folder / "quarantine.csv", dtype=str)["action"].value_counts()
    assert listed.get("image dropped", 0) == lost
    assert listed.get("row dropped", 0) == account["dropped"] + clicks["dropped"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([20, 100]),
    layout=st.sampled_from(list(LAYOUTS)),
    kind=st.sampled_from(["csv", "tsv", "xlsx", "parquet", "json", "jsonl"]),
    limit=st.sampled_from([0, 30]),
)
def test_every_row_and_every_photograph_is_accounted_for(tmp_path_factory, seed, count, layout, kind, limit):
    all_accounted_for(tmp_path_factory.mktemp("fuzz"), seed, count, layout, kind, limit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layout", "limit"),
    [
        ("csv", "plain", 0),
        ("csv", "shopify", 500),
        ("xlsx", "woo", 0),
        ("parquet", "plain", 500),
        ("jsonl", "shopify", 0),
    ],
)
def test_so_they_are_of_ten_thousand(tmp_path, kind, layout, limit):
    all_accounted_for(tmp_path, 7, 10_000, layout, kind, limit)
