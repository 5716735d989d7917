"""Further members of each kind of input that folders failed on: cells, columns, headers, files, systems, grades, splits."""

import bz2
import datetime
import decimal
import gzip
import json
import lzma

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_asked import asked, judged
from test_exports import COUNT, KINDS, counts, health, plain, shop, taken

from makelib.data.sources.files.cells import names_in
from makelib.data.sources.files.health import health_report
from makelib.data.sources.files.judged import grade, split_of
from makelib.data.sources.files.paths import hidden
from makelib.runtime import UserError

NAMES = [f"{i}.jpg" for i in range(COUNT)]
ROWS = [plain(i, image=f"{i}.jpg") for i in range(COUNT)]
WHOLE = (COUNT, COUNT, 0)


# -- cells ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ('<img src="a.jpg" alt="x">', ["a.jpg"]),
        ("<p><img alt='b.jpg' src='//cdn.x/a.jpg?v=1&amp;w=2'></p><img src=b.jpg>", ["//cdn.x/a.jpg?v=1&w=2", "b.jpg"]),
        ('<a href="page.html"><img data-x="1" src="https://cdn.x/1"></a>', ["https://cdn.x/1"]),
        ("![front](images/a.jpg) ![](b.png 'no')", ["images/a.jpg", "b.png"]),
        ('![a](<a b.jpg> "title")', ["a b.jpg"]),
        ("background: url('a.jpg')", ["a.jpg"]),
        ('=HYPERLINK("a.jpg")', ["a.jpg"]),
        ('=IMAGE("https://cdn.x/a.jpg")', ["https://cdn.x/a.jpg"]),
        ('a:2:{i:0;s:5:"a.jpg";i:1;s:5:"b.jpg";}', ["a.jpg", "b.jpg"]),
        ('{"images": [{"url": "a.jpg"}, {"url": "b.jpg"}]}', ["a.jpg", "b.jpg"]),
        ('{"0": "a.jpg", "1": "b.jpg", "alt": "front"}', ["a.jpg", "b.jpg"]),
        ('[{"thumb": "t.jpg", "large": "a.jpg", "hi_res": null}]', ["a.jpg"]),
        ('{"alt": "front", "width": 9}', []),
        ("{a.jpg,b.jpg}", ["a.jpg", "b.jpg"]),
        ("(a.jpg)", ["a.jpg"]),
        ("“a.jpg”", ["a.jpg"]),
        ("<a.jpg>", ["a.jpg"]),
        ("a.jpg<br/>b.jpg<BR>c.jpg", ["a.jpg", "b.jpg", "c.jpg"]),
        ("a.jpg^b.jpg~c.jpg::d.jpg", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]),
        ("a.jpg、b.jpg，c.jpg；d.jpg", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]),
        ("a b.jpg - c d.jpg", ["a b.jpg", "c d.jpg"]),
        ("1. a.jpg\n2. b.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg ! alt : red ! title : x | b.jpg ! alt : x", ["a.jpg", "b.jpg"]),
        ("a.jpg (front view)", ["a.jpg"]),
        ("no_selection,a.jpg", ["a.jpg"]),
        ("null; a.jpg ;N/A", ["a.jpg"]),
        ("nan", []),
        ("https://cdn.x/a;v=1,2/b.jpg", ["https://cdn.x/a;v=1,2/b.jpg"]),
        ("https://cdn.x/1 https://cdn.x/2", ["https://cdn.x/1", "https://cdn.x/2"]),
        ("https://cdn.x/my photo.jpg", ["https://cdn.x/my photo.jpg"]),
        ("photo of a dress, front", ["photo of a dress, front"]),
        (" a.jpg ", [" a.jpg "]),
    ],
)
def test_what_a_cell_names(cell, names):
    assert names_in(cell, lambda _: False) == names


@pytest.mark.parametrize("cell", ["<img src=a.jpg>", "a.jpg^b.jpg", "nan", "(a.jpg)", "![x](a.jpg)", "{a}.jpg"])
def test_a_file_of_exactly_that_name_is_meant(cell):
    assert names_in(cell, lambda name: name == cell) == [cell]


@pytest.mark.parametrize(
    "cell", ["word " * 200_000, "<" * 100_000, "![" * 100_000, "(" * 100_000 + ")" * 100_000, "." * 300_000 + " "]
)
def test_a_long_cell_without_a_photograph_costs_little(cell):
    assert names_in(cell, lambda _: False) in ([cell], [])


@pytest.mark.parametrize("cell", ["..\\images\\{}.jpg", "../../images/{}.jpg", "~/shop/{}.jpg"])
def test_a_path_from_where_a_program_stood(tmp_path, cell):
    folder = shop(tmp_path / "raw", [plain(i, image=cell.format(i)) for i in range(COUNT)], NAMES)
    assert counts(taken(folder, tmp_path / "out")) == WHOLE


@pytest.mark.parametrize(
    "columns",
    [("image_1", "image_2"), ("image", "image"), ("Image URL", "Image URL 2"), ("main_image", "gallery_images"), ("image_front", "image_back"),
     ("Bild 1", "Bild 2"), ("cover image", "Image 1"), ("图片1", "图片2")],
)  # fmt: skip
def test_all_columns_of_photographs_are_read(tmp_path, columns):
    folder = shop(tmp_path / "raw", [], [f"{i}{end}.jpg" for end in ("", "b") for i in range(COUNT)])
    rows = [[*plain(i).values(), f"{i}.jpg", f"{i}b.jpg"] for i in range(COUNT)]
    pd.DataFrame(rows).to_csv(folder / "products.csv", index=False, header=[*plain(0), *columns])
    assert counts(taken(folder, tmp_path / "out")) == (COUNT, COUNT, COUNT)
    assert counts(taken(folder, tmp_path / "out", columns={"image": columns[0]})) == WHOLE  # who states one means it


@pytest.mark.parametrize(
    "name",
    ["._a.jpg", ".DS_Store", "Thumbs.db", "ehthumbs_vista.db", "desktop.ini", "Icon\r", "a.jpg~", "~$a.xlsx", "a.jpg.part", "a.jpg:Zone.Identifier",
     "__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle", "System Volume Information", ".Spotlight-V100"],
)  # fmt: skip
def test_what_systems_leave_beside_photographs(name):
    assert hidden(name)
    assert not hidden(f"x{name[1:] if name[0] in '.~$#@_' else name.replace('~', '')}.jpg")


def test_a_folder_of_photographs_holds_notes_too(tmp_path):
    folder = shop(
        tmp_path / "raw", [plain(i) for i in range(COUNT)], [f"p{i}/{n}.jpg" for n in "ab" for i in range(COUNT)]
    )
    for i in range(COUNT):
        for name in ("readme.txt", "index.html", "Picasa.ini"):
            (folder / "images" / f"p{i}" / name).write_text("notes")
    assert counts(taken(folder, tmp_path / "out")) == (COUNT, COUNT, COUNT)


def test_photographs_that_cannot_be_read_have_a_remedy(tmp_path):
    folder = shop(tmp_path / "raw", [plain(i, image=f"{i}.heic") for i in range(COUNT)])
    for i in range(COUNT):
        (folder / "images" / f"{i}.heic").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(99))
    report = health_report(taken(folder, tmp_path / "out"))
    assert "LOST: 48 of 48 photographs; 48 because each is a HEIC photograph" in report
    assert "Convert them to JPEG" in report
    shop(folder, [plain(i, image_1920="/9j/4AAQSkZJRgABAQ" + "A" * 400) for i in range(COUNT)])
    report = health_report(taken(folder, tmp_path / "out"))
    assert "48 because each is the photograph itself, in base64" in report


# -- headers -------------------------------------------------------------------------------------------------------------

HEAD = list(ROWS[0])


def cells(*more):
    return [[*map(str, row.values()), *more] for row in ROWS]


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        (["Unnamed: 0", *HEAD], [["7", *row] for row in cells()]),
        (["", *HEAD], [[str(i), *row] for i, row in enumerate(cells())]),
        ([*HEAD, "tag", "tag", "tag"], cells("a", "b", "")),
        ([*HEAD, " ", "\u00a0", "\ufeff"], cells("", "", "")),
        ([*HEAD, "", "note", ""], cells("", "n", "")),
        ([*HEAD, "", ""], cells()),  # the header alone has columns that are empty
        (HEAD, cells("", "")),  # or all rows do
        (["\ufeffproduct_id", *HEAD[1:]], cells()),
        ([f" {name.upper()} " for name in HEAD], cells()),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_headers_of_all_kinds(tmp_path, head, rows, suffix):
    folder = shop(tmp_path / "raw", [], NAMES)
    if suffix == "csv":
        (folder / "products.csv").write_text("\n".join(",".join(row) for row in [head, *rows]), encoding="utf-8")
    else:
        book = openpyxl.Workbook()
        for row in [head, *rows]:
            book.active.append(row)
        book.save(folder / "products.xlsx")
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == WHOLE
    assert catalog.products["title"].tolist() == [row["title"] for row in ROWS]


def test_a_comma_without_quotes_is_no_empty_column(tmp_path):
    lines = [",".join(row) for row in [HEAD, *cells()]]
    lines[5:5] = ["x,Acme, red shirt,red,shirt,"]
    folder = shop(tmp_path / "raw", [], NAMES)
    (folder / "products.csv").write_text("\n".join(lines))
    assert health(taken(folder, tmp_path / "out"))["products"]["dropped"] == 1


@pytest.mark.parametrize("separator", [";", "|", "\t", "~", "^", "\x01"])
def test_what_parts_the_cells_is_guessed_and_said(tmp_path, separator):
    rows = [{**row, "note": 'two\nlines, "quoted"'} for row in ROWS]
    folder = shop(tmp_path / "raw", rows, NAMES, sep=separator)
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == WHOLE
    assert "part the cells, as the header suggests" in health_report(catalog)


def test_quotes_behind_a_backslash(tmp_path):
    rows = [{**row, "note": f'the "best" of {i}'} for i, row in enumerate(ROWS)]
    folder = shop(tmp_path / "raw", rows, NAMES, doublequote=False, escapechar="\\")
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == WHOLE
    assert 'quotes within cells are written \\"' in health_report(catalog)
    rows = [{**row, "note": f"C:\\shop\\{i}\\"} for i, row in enumerate(ROWS)]  # these end in one
    assert "quotes within" not in health_report(taken(shop(tmp_path / "raw", rows, quoting=1), tmp_path / "out"))


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2).replace("\n", "\r\n"),
        json.dumps({"count": COUNT, "errors": [], "products": ROWS}),
        json.dumps({"data": {"products": ROWS}}),
        json.dumps({row["product_id"]: row for row in ROWS}),
        pd.DataFrame(ROWS).to_json(),
        "\ufeff" + json.dumps(ROWS),
        "\n\n".join(map(json.dumps, ROWS)),
    ],
    ids=range(8),
)
def test_json(tmp_path, text):
    folder = shop(tmp_path / "raw", [], NAMES)
    (folder / "export.json").write_text(text, encoding="utf-8")
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == WHOLE
    assert set(catalog.products["category"]) == set(KINDS)
    (folder / "export.json").write_text(text[:-40] + "!", encoding="utf-8")
    if "\n\n" not in text:  # lines are broken one by one
        with pytest.raises(UserError, match="not whole JSON"):
            taken(folder, tmp_path / "out")


def test_what_shops_answer_in_json(tmp_path):
    folder = shop(tmp_path / "raw", [], NAMES)
    theirs = [
        {"id": i, "name": row["title"], "sku": f"s{i}", "images": [{"id": 7, "src": f"{i}.jpg", "name": "x"}], "color": row["colour"],
         "categories": [{"id": 1, "name": "All"}, {"id": 2, "name": row["type"]}]} for i, row in enumerate(ROWS)
    ]  # fmt: skip
    (folder / "products.json").write_text(json.dumps(theirs))
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == WHOLE
    assert set(catalog.products["category"]) == set(KINDS)
    assert "export of WooCommerce" in health_report(catalog)


@pytest.mark.parametrize(
    ("name", "packed"), [("products.csv.gz", gzip), ("Export 2024.CSV.bz2", bz2), ("products.jsonl.xz", lzma)]
)
def test_packed_text(tmp_path, name, packed):
    folder, frame = shop(tmp_path / "raw", [], NAMES), pd.DataFrame(ROWS)
    text = frame.to_json(orient="records", lines=True) if "jsonl" in name else frame.to_csv(index=False)
    (folder / name).write_bytes(packed.compress(text.encode()))
    assert counts(taken(folder, tmp_path / "out")) == WHOLE
    for broken in ((folder / name).read_bytes()[:-40], b"not packed at all"):
        (folder / name).write_bytes(broken)
        with pytest.raises(UserError, match="Cannot read"):
            taken(folder, tmp_path / "out")


def test_of_several_tables_one_must_be_called_products(tmp_path):
    folder = shop(tmp_path / "raw", ROWS, NAMES, table="export.csv")
    (folder / "notes.txt").write_text("call Anna")
    (folder / "settings.json").write_text("{}")
    assert counts(taken(folder, tmp_path / "out")) == WHOLE
    shop(folder, ROWS, table="stock.csv")
    with pytest.raises(UserError, match=r"holds export.csv and stock.csv; call that of the products products\.csv"):
        taken(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([decimal.Decimal("19.99")] * COUNT),
        pa.array([datetime.datetime(2024, 1, 1)] * COUNT, pa.timestamp("us", "Europe/Berlin")),
        pa.array([1] * COUNT, pa.timestamp("ns", "+02:00")),
        pa.array([datetime.time(3)] * COUNT),
        pa.nulls(COUNT),
        pa.array([2**63 + 1] * COUNT, pa.uint64()),
        pa.array([b"\xff"] * COUNT),
        pa.array([[{"a": datetime.date(2024, 1, 1), "b": [1.5]}]] * COUNT),
        pa.array([[("a", 1)]] * COUNT, pa.map_(pa.string(), pa.int8())),
        pa.array([True, None] * (COUNT // 2)),
    ],
    ids=str,
)
def test_columns_of_all_types_in_parquet(tmp_path, column):
    folder = shop(tmp_path / "raw", [], NAMES)
    table = {key: pa.array([str(row[key]) for row in ROWS], pa.large_string()) for key in HEAD}
    table["title"] = table["title"].dictionary_encode()
    table["image"] = pa.array([[{"src": name, "width": 9}] for name in NAMES])
    pq.write_table(pa.table(table | {"more": column}), folder / "products.parquet")
    assert counts(taken(folder, tmp_path / "out")) == WHOLE


# -- systems -------------------------------------------------------------------------------------------------------------


def exported(system, i):
    title, kind, colour, one, two = ROWS[i]["title"], KINDS[i % 4], ROWS[i]["colour"], f"{i}.jpg", f"{i}b.jpg"
    variant = {
        "Square": "Token",
        "Ecwid": "product_sku",
        "Lightspeed X": "sku",
        "Lightspeed C": "Internal_Variant_ID",
    }.get(system)
    row = {
        "OpenCart": {"product_id": i, "name(en-gb)": title, "name(de-de)": "x", "model": f"m{i}", "manufacturer": "Acme", "categories": kind,
                     "image_name": one, "additional_images": two},
        "Odoo": {"External ID": f"__export__.p{i}", "Name": title, "Product Category": f"All / Saleable / {kind}", "Internal Reference": f"D{i}",
                 "Image": one, "Color": colour, "Image URL": two},
        "Square": {"Reference Handle": f"#h{i}", "Token": f"T{i}", "Item Name": title, "Variation Name": "S", "SKU": f"s{i}",
                   "Categories": kind, "Image": one, "Image 2": two},
        "Lightspeed X": {"id": f"u{i}", "handle": f"h{i}", "sku": f"s{i}", "name": title, "product_category": kind, "brand_name": "Acme",
                         "variant_option_one_name": "Colour", "variant_option_one_value": colour, "image_url": f"{one},{two}"},
        "Lightspeed R": {"System ID": 210_000 + i, "Custom SKU": "", "Item": title, "Category": kind, "Brand": "Acme", "Image": f"{one}|{two}"},
        "Lightspeed C": {"Internal_ID": i, "Internal_Variant_ID": 10 * i, "NL_Title_Short": title, "NL_Category_1": kind, "Images": f"{one},{two}"},
        "Ecwid": {"type": "product", "product_internal_id": 9000 + i, "product_sku": f"s{i}", "product_name": title,
                  "product_media_main_image_url": one, "product_media_gallery_image_url_1": two, "product_category_1": f"All / {kind}"},
        "eBay": {"*Action(SiteID=US)": "Add", "CustomLabel": f"e{i}", "*Title": title, "Category name": kind, "PicURL": f"{one}|{two}"},
        "Akeneo": {"sku": f"a{i}", "family": kind, "category": kind, "name-en_US": title, "picture": one, "image_2": two},
    }[system]  # fmt: skip
    return [row | {"material": f"m{i % 12}"}, *([row | {variant: f"{row[variant]}0"}] if variant else [])]


@pytest.mark.parametrize(
    "system", ["OpenCart", "Odoo", "Square", "Lightspeed X", "Lightspeed R", "Lightspeed C", "Ecwid", "eBay", "Akeneo"]
)
def test_exports_of_further_systems(tmp_path, system):
    rows = [row for i in range(COUNT) for row in exported(system, i)]
    folder = shop(tmp_path / "raw", rows, [f"{i}{end}.jpg" for end in ("", "b") for i in range(COUNT)])
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == (COUNT, COUNT, COUNT)
    assert catalog.products["title"].tolist() == [row["title"] for row in ROWS]
    assert set(catalog.products["category"]) == set(KINDS)
    account = health(catalog)["products"]
    assert account["read"] == len(rows) == account["kept"] + account.get("merged", 0)
    if system != "Akeneo":
        assert f"is an export of {system.split()[0]}" in health_report(catalog)


# -- grades and splits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("2", 2.0), ("0,5", 0.5), (" 1e0 ", 1.0), ("-2", 0.0), ("50 %", 0.5), ("2/4", 0.5), (".5", 0.5), ("+1", 1.0),
        ("Exact", 1.0), ("S", 0.1), ("Partial", 0.5), ("Highly_Relevant", 1.0), ("not-relevant", 0.0), ("True", 1.0), ("no", 0.0), ("FAIR", 0.25),
        ("so so", 0.4), ("Exakt", 0.9),
        ("", None), ("nan", None), ("inf", None), ("1;2", None), ("1/0", None), ("grand", None), ("1.2.3", None),
    ],
)  # fmt: skip
def test_a_label_as_a_grade(label, value):
    assert grade(label, {"so so": 0.4, "exakt": 0.9}) == (None if value is None else pytest.approx(value))


def test_judgments_in_words(tmp_path):
    folder = shop(tmp_path / "raw", [plain(i) for i in range(COUNT)])
    words = ("Exact", "Partial", "Irrelevant", "odd")
    rows = [row | {"label": words[i % 4]} for i, row in enumerate(judged())]
    catalog = taken(asked(folder, rows), tmp_path / "out", grades={"odd": 0.2})
    assert catalog.interactions["label"].tolist() == pytest.approx([1.0, 0.5, 0.0, 0.2] * (COUNT // 4))
    assert set(catalog.interactions["kind"]) == {"judgment"}
    report = health_report(taken(folder, tmp_path / "out"))
    assert "12 because each has a label that is neither a number nor a known word. Say what its words mean" in report
    with pytest.raises(UserError, match="'cart' is no label of the interactions"):
        taken(folder, tmp_path / "out", grades={"cart": 0.2})
    with pytest.raises(UserError, match="grades are 0 to 1"):
        taken(folder, tmp_path / "out", grades={"odd": 3})


@pytest.mark.parametrize(
    ("name", "split"),
    [("TRAIN", "train"), ("train/", "train"), ("Dev", "validation"), ("hold-out", "test"), ("test_set", "test"), ("test1", "test"),
     ("qrels.valid", "validation"), ("query_train", "train"), ("Evaluation", "test"), ("later", ""), ("", ""), ("latest", ""), ("0", "")],
)  # fmt: skip
def test_splits_by_other_names(name, split):
    assert split_of(name) == split
