"""Exports of shop systems, file names as people write them, archives, notices: each kind of report that folders failed on.

Every shop here has the same ten products with a photograph each of its own colour, so what came in can be counted.
"""

import io
import json
import tarfile
import unicodedata
import zipfile

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from makelib.__main__ import main
from makelib.data.catalog import Catalog
from makelib.data.sources.files.cells import names_in
from makelib.data.sources.files.health import health_report
from makelib.data.sources.files.importer import import_catalog
from makelib.data.sources.files.mojibake import mended
from makelib.data.sources.files.options import read_options
from makelib.data.sources.files.rows import masked
from makelib.data.sources.files.systems import leaf, text_of
from makelib.runtime import UserError

COUNT = 48
COLOURS, KINDS = ("red", "blue", "green"), ("shirt", "shoe", "bag", "cap")


def jpeg(number: int, further: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 9), (number * 5 % 256, further * 40, 7)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def shop(folder, rows, names=(), table="products.csv", **options):
    """A folder with the `rows` as a table and a photograph under images/ for each of `names`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number % COUNT, number // COUNT))
    if rows:
        pd.DataFrame(rows).to_csv(folder / table, index=False, **options)
    return folder


def plain(i, **cells):
    return {
        "product_id": f"p{i}",
        "title": f"Acme {COLOURS[i % 3]} {KINDS[i % 4]} {i}",
        "colour": COLOURS[i % 3],
        "type": KINDS[i % 4],
        **cells,
    }


def taken(folder, out, **options) -> Catalog:
    return import_catalog(folder, out, read_options(folder, queries=30, clicks=200, **options))


def counts(catalog) -> tuple[int, int, int]:
    """Products, with a photograph, further photographs."""
    return len(catalog), int(catalog.present[:, 1].sum()), int(catalog._pixels.further.sum())


def health(catalog) -> dict:
    return json.loads((catalog.folder / "health.json").read_text(encoding="utf-8"))


# -- shop systems -------------------------------------------------------------------------------------------------------


def shopify(new: bool):
    rows = []
    for i in range(COUNT):
        for number in (2, 1, 3):  # the order of the rows is not that of the photographs
            first = number == 2
            row = {
                "Handle": f"h{i}",
                "Title": f"Acme {KINDS[i % 4]} {i}" if first else "",
                "Body (HTML)": "<p>x</p>",
                "Vendor": "Acme" if i % 2 else "Tarn",
                "Type": KINDS[i % 4] if first else "",
                "Option1 Name": "Color" if first else "",
                "Option1 Value": COLOURS[i % 3],
                "Option2 Name": "Size" if first else "",
                "Option2 Value": "SML"[number - 1],
                "Variant SKU": f"{i}-{number}",
                "Image Src": f"{i}_{number}.jpg",
                "Image Position": number,
            }
            if new:
                names = {
                    "Handle": "URL handle",
                    "Body (HTML)": "Description",
                    "Image Src": "Product image URL",
                    "Variant SKU": "SKU",
                    "Image Position": "Image position",
                }
                row = {names.get(key, key): value for key, value in row.items()}
            rows.append(row)
    return rows, [f"{i}_{number}.jpg" for number in (1, 2, 3) for i in range(COUNT)], (COUNT, COUNT, 2 * COUNT)


def woocommerce(parent: str):
    rows = []
    for i in range(COUNT):
        rows.append({"ID": 100 + i, "Type": "variable", "SKU": f"s{i}", "Name": f"Acme {KINDS[i % 4]} &#8470; {i}", "Published": 1,
                     "Parent": "", "Categories": f"Clothing > Sub > {KINDS[i % 4]}, Sale", "Images": f"{i}-a.jpg, {i}-b.jpg",
                     "Attribute 1 name": "Color", "Attribute 1 value(s)": COLOURS[i % 3]})  # fmt: skip
        rows.insert(0, {**rows[-1], "ID": 900 + i, "Type": "variation", "SKU": f"v{i}", "Name": f"variant {i}",
                        "Parent": f"id:{100 + i}" if parent == "id" else f"s{i}", "Images": f"{i}-c.jpg", "Categories": ""})  # fmt: skip
    return rows, [f"{i}-{letter}.jpg" for letter in "abc" for i in range(COUNT)], (COUNT, COUNT, 2 * COUNT)


def magento():
    rows = []
    for i in range(COUNT):
        size = {
            "sku": f"m{i}-S",
            "store_view_code": "",
            "attribute_set_code": "Top",
            "product_type": "simple",
            "categories": "",
            "name": f"Acme {KINDS[i % 4]} {i} S",
            "base_image": f"/m/b/{i}-s.jpg",
            "additional_images": "",
            "additional_attributes": f"color={COLOURS[i % 3]},size=S",
            "configurable_variations": "",
        }
        rows.append(size)
        rows.append({**size, "sku": f"m{i}", "product_type": "configurable", "name": f"Acme {KINDS[i % 4]} {i}",
                     "categories": f"Default Category/Gear/{KINDS[i % 4]},Default Category",
                     "base_image": f"/m/b/{i}-1.jpg", "additional_images": f"/m/b/{i}-1.jpg,/m/b/{i}-2.jpg",
                     "additional_attributes": f"color={COLOURS[i % 3]}",
                     "configurable_variations": f"sku=m{i}-S,size=S|sku=m{i}-gone,size=M"})  # fmt: skip
        rows.append({**size, "sku": f"m{i}", "store_view_code": "de", "name": f"Acme deutsch {i}", "base_image": ""})
    return rows, [f"m/b/{i}-{letter}.jpg" for letter in "12s" for i in range(COUNT)], (COUNT, COUNT, 2 * COUNT)


def bigcommerce(version: int):
    rows = []
    for i in range(COUNT):
        if version == 2:
            rows.append({"Item Type": "Product", "Product ID": 7 + i, "Product Name": f"Acme {KINDS[i % 4]} {i}",
                         "Product Code/SKU": f"b{i}", "Category": f"Shop All/{KINDS[i % 4]};Sale",
                         "Brand Name": "Acme" if i % 2 else "Tarn", "Product Image File - 1": f"a/{i}.jpg",
                         "Product Image File - 2": f"b/{i}.jpg"})  # fmt: skip
            rows.append({"Item Type": "  SKU", "Product Name": "[RB]Size=Small", "Product Code/SKU": f"b{i}-S"})
        else:
            rows.append({"Item": "Product", "ID": 7 + i, "Name": f"Acme {KINDS[i % 4]} {i}", "SKU": f"b{i}",
                         "Categories": f"Shop All/{KINDS[i % 4]}", "Internal Image URL (Export)": ""})  # fmt: skip
            rows.append({"Item": "Image", "ID": "", "Name": "", "SKU": "", "Internal Image URL (Export)": f"a/{i}.jpg"})
            rows.append({"Item": "Image", "ID": "", "Name": "", "SKU": "", "Internal Image URL (Export)": f"b/{i}.jpg"})
    return rows, [f"{letter}/{i}.jpg" for letter in "ab" for i in range(COUNT)], (COUNT, COUNT, COUNT)


def prestashop():
    rows = [
        {
            "Product ID": 1 + i,
            "Active (0/1)": 1,
            "Name *": f"Acme {KINDS[i % 4]} {i}",
            "Categories (x,y,z...)": f"Home,{KINDS[i % 4]}",
            "Image URLs (x,y,z...)": f"{i}.jpg,{i}-2.jpg",
            "Feature(Name:Value:Position:Customized)": f"Colour:{COLOURS[i % 3]}:1",
        }
        for i in range(COUNT)
    ]
    return rows, [f"{i}{end}.jpg" for end in ("", "-2") for i in range(COUNT)], (COUNT, COUNT, COUNT)


def merchant():
    rows = [
        {
            "id": f"g{i}",
            "title": f"Acme &amp; {KINDS[i % 4]} {i}",
            "image_link": f"{i}.jpg",
            "additional_image_link": f"{i}-2.jpg,{i}-3.jpg",
            "product_type": f"Home > Clothing, Shoes > {KINDS[i % 4]}",
            "color": COLOURS[i % 3],
            "price": "19.99 EUR",
        }
        for i in range(COUNT)
    ]
    return rows, [f"{i}{end}.jpg" for end in ("", "-2", "-3") for i in range(COUNT)], (COUNT, COUNT, 2 * COUNT)


@pytest.mark.parametrize(
    ("system", "rows", "options"),
    [
        ("Shopify", shopify(False), {}),
        ("Shopify", shopify(True), {}),
        ("WooCommerce", woocommerce("id"), {}),
        ("WooCommerce", woocommerce("sku"), {}),
        ("Magento", magento(), {}),
        ("BigCommerce", bigcommerce(2), {}),
        ("BigCommerce", bigcommerce(3), {}),
        ("PrestaShop", prestashop(), {"sep": ";"}),
        ("Google Merchant Center", merchant(), {"sep": "\t"}),
    ],
)
def test_an_export_comes_in_whole(tmp_path, system, rows, options):
    table, names, expected = rows
    catalog = taken(shop(tmp_path / "raw", table, names, **options), tmp_path / "out")
    assert counts(catalog) == expected
    assert set(catalog.products["category"]) == set(KINDS)
    account = health(catalog)["products"]
    assert account["read"] == len(table) == account["kept"] + account.get("merged", 0)
    assert f"export of {system}" in health_report(catalog)
    colour = next((name for name in catalog.attributes if name.casefold() in ("color", "colour")), None)
    if colour:  # BigCommerce keeps options in other files
        assert catalog.attributes[colour].tolist() == [COLOURS[i % 3] for i in range(COUNT)]
    assert (colour is None) == (system == "BigCommerce")


def test_shopify_photographs_stand_by_their_position_and_vendors_are_brands(tmp_path):
    table, names, _ = shopify(False)
    catalog = taken(shop(tmp_path / "raw", table, names), tmp_path / "out")
    assert catalog._pixels[5] == [(tmp_path / "raw" / "images" / f"5_{n}.jpg").read_bytes() for n in (1, 2, 3)]
    assert set(catalog.attributes["brand"]) == {"Acme", "Tarn"}
    assert "Size" not in catalog.attributes  # each product has all three


def test_a_feed_in_xml(tmp_path):
    table, names, expected = merchant()
    items = "".join(
        f"<item><g:id>{r['id']}</g:id><title>{r['title']}</title><g:image_link>{r['image_link']}</g:image_link>"
        + "".join(
            f"<g:additional_image_link>{x}</g:additional_image_link>" for x in r["additional_image_link"].split(",")
        )
        + f"<g:product_type>{r['product_type'].replace('>', '&gt;')}</g:product_type><g:color>{r['color']}</g:color></item>"
        for r in table
    )
    folder = shop(tmp_path / "raw", [], names)
    text = (
        f'<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel><title>x</title>{items}</channel></rss>'
    )
    (folder / "feed.xml").write_text(text)
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == expected
    assert catalog.products["title"][0] == "Acme & shirt 0"
    (folder / "feed.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><a><item>&b;</item></a>')
    with pytest.raises(UserError, match="defines entities"):
        taken(folder, tmp_path / "out")
    (folder / "feed.xml").write_text(text[:-40])
    with pytest.raises(UserError, match="not whole XML"):
        taken(folder, tmp_path / "out")


def test_excel_and_its_ways(tmp_path):
    folder, book = shop(tmp_path / "raw", [], [f"{i}.jpg" for i in range(COUNT)]), openpyxl.Workbook()
    book.active.append([])
    book.active.append(["product_id", "title", "type", "image", None])
    for i in range(COUNT):
        book.active.append([1000.0 + i, f"Acme {KINDS[i % 4]} {i}", KINDS[i % 4], f"{i}.jpg"])
    book.create_sheet("Notes")
    book.save(folder / "products.xlsx")
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == (COUNT, COUNT, 0)
    assert catalog.products["product_id"][0] == "1000"
    assert "first sheet" in health_report(catalog)
    (folder / "products.xlsx").write_bytes(b"PK no book")
    with pytest.raises(UserError, match="Save it as"):
        taken(folder, tmp_path / "out")


def test_one_table_of_any_name_is_the_products(tmp_path):
    folder = shop(tmp_path / "raw", [plain(i) for i in range(COUNT)], table="export 2024 (1).csv")
    assert len(taken(folder, tmp_path / "out")) == COUNT


@pytest.mark.parametrize("lines", ["sep=;\n", "\n;;;\n", ""])
def test_a_header_with_empty_cells_or_lines_above_it(tmp_path, lines):
    folder = shop(tmp_path / "raw", [plain(i) for i in range(COUNT)], sep=";")
    body = (folder / "products.csv").read_text()
    (folder / "products.csv").write_text(lines + "".join(f"{line};;\n" for line in body.splitlines()))
    catalog = taken(folder, tmp_path / "out")
    assert len(catalog) == COUNT
    assert "semicolons part the cells" in health_report(catalog)
    assert ("the header is line" in health_report(catalog)) == bool(lines)


# -- names of photographs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "disk"),
    [
        ("images\\a{}.jpg", "a{}.jpg"),
        ("IMAGES/A{}.JPG", "a{}.jpg"),
        ("a{}.jpg", "A{}.JPG"),
        ("\t a{}.jpg\u00a0", "a{}.jpg"),
        ("'a{}.jpg'", "a{}.jpg"),
        ("/images/a{}.jpg", "a{}.jpg"),
        ("C:\\photos\\shop\\a{}.jpg", "a{}.jpg"),
        ("D:/a{}.jpg", "a{}.jpg"),
        ("\\\\server\\share\\sub\\a{}.jpg", "sub/a{}.jpg"),
        ("/var/www/media/m/b/a{}.jpg", "m/b/a{}.jpg"),
        ("file:///C:/photos/a{}.jpg", "a{}.jpg"),
        ("a%20b{}.jpg", "a b{}.jpg"),
        ("a{}.jpg?v=1700", "a{}.jpg"),
        ("a&amp;b{}.jpg", "a&b{}.jpg"),
        ("é{}.jpg", unicodedata.normalize("NFD", "é{}.jpg")),
        (unicodedata.normalize("NFD", "Ä{}.jpg"), "ä{}.jpg"),
        ("a, b{}.jpg", "a, b{}.jpg"),
        ("x;y|{}.jpg", "x;y|{}.jpg"),
        ("[{}].jpg", "[{}].jpg"),
        ("50%{}.jpg", "50%{}.jpg"),
        ("./sub//a{}.jpg", "sub/a{}.jpg"),
    ],
)
def test_a_photograph_is_found_however_its_name_is_written(tmp_path, cell, disk):
    rows = [plain(i, image=cell.format(i)) for i in range(COUNT)]
    catalog = taken(shop(tmp_path / "raw", rows, [disk.format(i) for i in range(COUNT)]), tmp_path / "out")
    assert counts(catalog) == (COUNT, COUNT, 0)
    assert catalog._pixels[3] == [(tmp_path / "raw" / "images" / disk.format(3)).read_bytes()]


def test_two_files_that_differ_in_case_only_are_not_mistaken(tmp_path):
    rows = [plain(i, image=["A.jpg", "a.jpg", "a.JPG"][i % 3]) for i in range(COUNT)]
    catalog = taken(shop(tmp_path / "raw", rows, ["A.jpg", "a.jpg"]), tmp_path / "out")
    assert [bool(x) for x in catalog.present[:3, 1]] == [True, True, False]
    assert catalog._pixels[0] != catalog._pixels[1]


@pytest.mark.parametrize(
    "cell",
    [
        "{0}a.jpg|{0}b.jpg", "{0}a.jpg, {0}b.jpg", "{0}a.jpg;{0}b.jpg", "{0}a.jpg\n{0}b.jpg", '["{0}a.jpg", "{0}b.jpg"]',
        "['{0}a.jpg', '{0}b.jpg']", "('{0}a.jpg', '{0}b.jpg')", "['{0}a.jpg' '{0}b.jpg']", "[{0}a.jpg, {0}b.jpg]",
        '[{{"src": "{0}a.jpg", "position": 1}}, {{"src": "{0}b.jpg"}}]', " {0}a.jpg , {0}b.jpg,",
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["image", "images"])
def test_lists_in_a_cell(tmp_path, cell, column):
    rows = [plain(i, **{column: cell.format(i)}) for i in range(COUNT)]
    names = [f"{i}{letter}.jpg" for letter in "ab" for i in range(COUNT)]
    catalog = taken(shop(tmp_path / "raw", rows, names), tmp_path / "out")
    assert counts(catalog) == (COUNT, COUNT, COUNT)


def test_addresses_with_commas_stay_whole():
    cell = "https://cdn.example/w_300,h_300/a.jpg, https://cdn.example/w_300,h_300/b.jpg"
    assert names_in(cell, lambda _: False) == [part for part in cell.split(", ")]
    assert names_in("Some title, with commas", lambda _: False) == ["Some title, with commas"]


@pytest.mark.parametrize("kind", [pa.large_list(pa.large_string()), pa.list_(pa.string(), 2), pa.list_(pa.string())])
def test_lists_of_any_width_in_parquet(tmp_path, kind):
    folder = shop(tmp_path / "raw", [], [f"{i}{letter}.jpg" for letter in "ab" for i in range(COUNT)])
    rows = [plain(i) for i in range(COUNT)]
    table = {key: [row[key] for row in rows] for key in rows[0]}
    table["images"] = pa.array([[f"{i}a.jpg", f"{i}b.jpg"] for i in range(COUNT)], kind)
    table["title"] = pa.array(table["title"], pa.string_view())
    table["type"] = pa.array(table["type"]).dictionary_encode()
    pq.write_table(pa.table(table), folder / "products.parquet")
    assert counts(taken(folder, tmp_path / "out")) == (COUNT, COUNT, COUNT)


def test_hidden_companions_are_no_photographs(tmp_path):
    names = [f"p{i}/{n}.jpg" for n in range(3) for i in range(COUNT)]
    folder = shop(tmp_path / "raw", [plain(i) for i in range(COUNT)], names)
    for i in range(COUNT):
        for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / "images" / f"p{i}" / name).write_bytes(b"x")
    (folder / "images" / "__MACOSX").mkdir()
    catalog = taken(folder, tmp_path / "out", images_per_product=3)
    assert counts(catalog) == (COUNT, COUNT, 2 * COUNT)


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz"])
@pytest.mark.parametrize("top", ["", "some folder/"])
def test_archives(tmp_path, name, top):
    folder = shop(tmp_path / "raw", [plain(i, image=f"a{i}.jpg") for i in range(COUNT)])
    members = {f"{top}a{i}.jpg": jpeg(i) for i in range(COUNT)} | {
        "__MACOSX/._a1.jpg": b"x",
        "../evil.jpg": b"x",
        "/abs.jpg": b"x",
    }
    if name.endswith(".zip"):
        with zipfile.ZipFile(folder / name, "w") as file:
            for member, data in members.items():
                file.writestr(member, data)
    else:
        with tarfile.open(folder / name, "w:gz" if name[-1] == "z" else "w") as file:
            for member, data in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(link)
    catalog = taken(folder, tmp_path / "out")
    assert counts(catalog) == (COUNT, COUNT, 0)
    assert name in health_report(catalog)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    (folder / name).write_bytes(b"PK\3\4 broken")
    with pytest.raises(UserError, match="Cannot read"):
        taken(folder, tmp_path / "out")


# -- nothing lost silently -----------------------------------------------------------------------------------------------


def test_what_is_lost_in_number_is_said_first_and_is_exit_code_3(tmp_path, capsys):
    rows = [plain(i, image=f"https://cdn.example/{i}.jpg") for i in range(COUNT)]
    folder = shop(tmp_path / "raw", rows)
    assert main(["data", "import", str(folder), "--out", str(tmp_path / "out")]) == 3
    said = capsys.readouterr()
    assert said.err.count("--fetch") == 1
    assert f"{COUNT} of {COUNT} photographs" in said.out.split("| table |")[0]
    assert main(["data", "import", str(folder), "--out", str(tmp_path / "out"), "--warn-share", "1"]) == 0
    shop(
        folder,
        [plain(i, image=f"{'https://cdn.example/' if i < 2 else ''}{i}.jpg") for i in range(COUNT)],
        [f"{i}.jpg" for i in range(COUNT)],
    )
    capsys.readouterr()
    assert (
        main(["data", "import", str(folder), "--out", str(tmp_path / "out")]) == 0
    )  # two are few, and said all the same
    assert (
        "- 2 of 48 photographs are addresses: run again with `--fetch`" in capsys.readouterr().out.split("| table |")[0]
    )


def test_photographs_named_are_read_or_listed(tmp_path):
    rows = [plain(i, images="|".join(f"{i}-{n}.jpg" for n in range(i % 13))) for i in range(COUNT)]
    names = [f"{i}-{n}.jpg" for i in range(COUNT) for n in range(i % 13) if (i + n) % 5]
    catalog = taken(shop(tmp_path / "raw", rows, names), tmp_path / "out")
    images = health(catalog)["images"]
    read = images["present"] + images["further"]
    assert images["named"] == sum(i % 13 for i in range(COUNT))
    assert images["named"] == read + sum(images["dropped"].values()) + images["beyond_8_a_product"]


def test_what_nobody_read_is_named(tmp_path):
    rows = [plain(i, thumb=f"t{i}.jpg") for i in range(COUNT)]
    report = health_report(taken(shop(tmp_path / "raw", rows, [f"t{i}.jpg" for i in range(COUNT)]), tmp_path / "out"))
    assert "'thumb'" in report
    assert "any of the 48 files under images/" in report


def test_an_encoding_that_does_not_fit_is_named_with_one_that_does(tmp_path):
    folder = shop(tmp_path / "raw", [plain(i) for i in range(COUNT)])
    lines = (folder / "products.csv").read_text().replace("Acme", "Müller Café").encode("cp1252").splitlines(True)
    (folder / "products.csv").write_bytes(b"".join(line if i % 4 else line.replace(b"\xfc", b"u").replace(b"\xe9", b"e")
                                                   for i, line in enumerate(lines)))  # fmt: skip
    report = health_report(taken(folder, tmp_path / "out"))
    assert "reads best as cp" in report
    assert "LOST: 36 of 48 rows" in report


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Rock &amp; Roll&nbsp;Tee", "Rock & Roll Tee"),
        ("<b>Red</b> dress<br/>new", "Red dress new"),
        ("&amp;eacute;t&eacute;", "été"),
        ("R&D kit < 5 > 3", "R&D kit < 5 > 3"),
        ("size <M> only", "size <M> only"),
        ("AT&T; no &unknown; thing", "AT&T; no &unknown; thing"),
        ("  spaces   stay ", "  spaces   stay "),
        ("a<script>alert(1)</script>b", "a b"),
    ],
)
def test_html_becomes_text(markup, text):
    assert text_of(markup) == text


def test_titles_in_html_are_counted(tmp_path):
    rows = [{**plain(i), "title": f"A&amp;B {i}" if i < 5 else f"Plain {i}"} for i in range(COUNT)]
    catalog = taken(shop(tmp_path / "raw", rows), tmp_path / "out")
    assert catalog.products["title"][:2].tolist() == ["A&B 0", "A&B 1"]
    assert "5 titles were HTML" in health_report(catalog)


def test_further_text_joins_the_title_in_order_and_within_limit(tmp_path):
    rows = [plain(i, description=f"<p>one two three {i}</p>", brand="Acme") for i in range(COUNT)]
    catalog = taken(shop(tmp_path / "raw", rows), tmp_path / "out", text_columns=["brand", "description"], text_words=3)
    assert catalog.products["title"][0] == "Acme red shirt 0 Acme one two"
    assert health(catalog)["titles"]["words_from"] == {"title": 0.571, "brand": 0.143, "description": 0.286}
    with pytest.raises(UserError, match="no column 'bullets'"):
        taken(tmp_path / "raw", tmp_path / "out", text_columns=["bullets"])


@pytest.mark.parametrize(
    ("category", "path", "apart", "expected"),
    [
        ("Clothing > Shirts, Sale", ">", ",", "Shirts"),
        ("Default Category/Gear/Bags,Default Category", "/", ",", "Bags"),
        ("Home > Clothing, Shoes > Boots", ">", "", "Boots"),
        ("Pots\\, Pans", ">", ",", "Pots, Pans"),
        ("", ">", ",", ""),
    ],
)
def test_the_last_step_of_the_deepest_path(category, path, apart, expected):
    assert leaf(category, path, apart) == expected


@pytest.mark.parametrize("text", ["anna.b@shop.example", "call +49 170 1234567 now", "(030) 123 45678", "555-123-4567"])
def test_personal_data_is_masked(text):
    assert "[personal]" in masked(text)


@pytest.mark.parametrize(
    "text", ["iphone 128 256 512", "5012345678900", "size 42/44", "2024-11-26", "1920x1080", "12.500.000", "a@b"]
)
def test_article_numbers_are_not(text):
    assert masked(text) == text


# -- text encoded twice -------------------------------------------------------------------------------------------------

TWICE = ["Café crème", "Müller – “Größe” 5€", "Платье красное", "红色连衣裙", "👕 shirt", "Łódź żółty", "ドレス", "شمس"]


@pytest.mark.parametrize("text", TWICE)
@pytest.mark.parametrize("read_as", ["cp1252", "latin-1"])
def test_text_that_was_encoded_twice_is_known_and_can_be_mended(text, read_as):
    known = {byte: bytes([byte]).decode(read_as, "ignore") or chr(byte) for byte in range(256)}
    broken = "".join(known[byte] for byte in text.encode())
    assert broken != text
    assert mended(f"{broken} and {broken}") == f"{text} and {text}"
    assert mended(text) == text


@pytest.mark.parametrize(
    "text", ["CAFÉ™", "NESTLÉ®", "QUALITÄ®", "MAÇÃ®", "5×“", "Größe", "São Paulo", "NÃO", "ESPAÑ…"]
)
def test_what_people_write_is_not_taken_for_it(text):
    assert mended(text) == text


def test_text_encoded_twice_is_counted_and_mended_only_when_asked(tmp_path):
    rows = [
        {**plain(i), "title": f"CafÃ© {i} {KINDS[i % 4]}"} if i < 5 else plain(i, image="Ã©.jpg") for i in range(COUNT)
    ]
    folder = shop(tmp_path / "raw", rows, ["Ã©.jpg"])
    pd.DataFrame([{"query": "rouge Ã©clatant", "product_id": f"p{i}"} for i in range(9)]).to_csv(
        folder / "interactions.csv", index=False
    )
    told = taken(folder, tmp_path / "out")
    assert told.products["title"][0] == "CafÃ© 0 shirt"
    report = health_report(told)
    assert (
        "products.csv: 5 rows hold letters that were encoded twice, such as 'CafÃ© 0 shirt' for 'Café 0 shirt'"
        in report
    )
    assert "interactions.csv: 9 rows" in report
    assert "--mend-text" in report
    right = taken(folder, tmp_path / "out", mend_text=True)
    assert right.products["title"][0] == "Café 0 shirt"
    assert right.queries["query"].tolist() == ["rouge éclatant"]
    assert counts(right) == counts(told) == (COUNT, COUNT - 5, 0)  # names of files stay as they are
    assert "5 rows" in health_report(right)
    assert "were read right" in health_report(right)


def test_personal_data_in_titles_and_labels_is_masked_unless_they_are_article_numbers(tmp_path):
    rows = [
        {**plain(i), "title": f"Filter 0445 110 {100 + i}", "seller": f"anna{i % 3}@shop.example"} for i in range(COUNT)
    ]
    folder = shop(tmp_path / "raw", rows)
    catalog = taken(folder, tmp_path / "out")
    assert set(catalog.products["title"]) == {"Filter [personal]"}
    assert "48 titles held what looks like personal data" in health_report(catalog)
    assert "anna" not in (catalog.folder / "products.parquet").read_bytes().decode("latin-1")
    assert taken(folder, tmp_path / "out", mask_titles=False).products["title"][0] == "Filter 0445 110 100"


# -- further members of each kind ---------------------------------------------------------------------------------------


def as_text(separator=",", newline="\n"):
    rows = [plain(i, image=f"{i}.jpg") for i in range(COUNT)]
    return newline.join(separator.join(map(str, cells)) for cells in [rows[0], *(row.values() for row in rows)])


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (as_text(";"), "utf-8-sig"),
        (as_text("|"), "utf-8"),
        (as_text("\t"), "utf-16"),
        (as_text("\t"), "utf-16-le"),
        (as_text(","), "utf-16-be"),
        (as_text(","), "utf-32"),
        (as_text(",", "\r"), "utf-8"),
        ("# export of today\n" + as_text(), "utf-8"),
        ("Product export,,,,\n,,,,\n" + as_text(), "utf-8"),
        ("Our shop\n\n" + as_text(";"), "utf-8"),
    ],
)
def test_a_table_however_it_is_saved(tmp_path, content, encoding):
    folder = shop(tmp_path / "raw", [], [f"{i}.jpg" for i in range(COUNT)])
    (folder / "products.csv").write_bytes(content.encode(encoding))
    assert counts(taken(folder, tmp_path / "out")) == (COUNT, COUNT, 0)


@pytest.mark.parametrize(
    "cell", ["{}", "{}.png", "images/{}.JPEG", "shop\\images\\{}.jpg", "{}.jpg {}b.jpg", "\u00a0{}.jpg\u200b"]
)
def test_a_photograph_under_another_suffix_or_beside_others(tmp_path, cell):
    rows = [plain(i, image=cell.format(i, i)) for i in range(COUNT)]
    names = [f"{i}.jpg" for i in range(COUNT)] + [f"{i}b.jpg" for i in range(COUNT)] * ("b.jpg" in cell)
    if "shop" in cell:  # a folder that is not there is not guessed away
        names = [f"shop/images/{name}" for name in names]
    assert counts(taken(shop(tmp_path / "raw", rows, names), tmp_path / "out")) == (
        COUNT,
        COUNT,
        COUNT * ("b.jpg" in cell),
    )


def test_a_suffix_is_not_guessed_where_two_files_could_be_meant(tmp_path):
    folder = shop(tmp_path / "raw", [plain(i, image=str(i)) for i in range(COUNT)], ["0.jpg", "0.png", "1.jpg"])
    assert counts(taken(folder, tmp_path / "out")) == (COUNT, 1, 0)


def others(system):
    rows = []
    for i in range(COUNT):
        title, kind, one, two = plain(i)["title"], KINDS[i % 4], f"{i}.jpg", f"{i}b.jpg"
        rows += {
            "Wix": [
                {"handleId": f"h{i}", "fieldType": "Product", "name": title, "productImageUrl": f"{one};{two}", "collection": kind},
                {"handleId": f"h{i}", "fieldType": "Variant", "name": "", "productImageUrl": "", "collection": ""},
            ],
            "Squarespace": [
                {"Product ID [Non Editable]": f"a{i}", "Title": title, "Categories": f"/shop/{kind}", "SKU": f"s{i}", "Hosted Image URLs": f"{one} {two}"},
                {"Product ID [Non Editable]": "", "Title": "", "Categories": "", "SKU": f"t{i}", "Hosted Image URLs": ""},
            ],
            "Amazon": [{"item_sku": f"a{i}", "item_name": title, "item_type": kind, "main_image_url": one, "other_image_url1": two}],
            "Etsy": [{"TITLE": title, "TAGS": "a,b", "SECTION": kind, "IMAGE1": one, "IMAGE2": two, "IMAGE3": "", "SKU": f"e{i}"}],
            "Shopware": [{"product_number": f"SW{i}", "name": title, "categories": kind, "cover_media_url": one, "media": f"{one}|{two}"}],
            "": [{"Artikelnummer": f"A{i}", "Bezeichnung": title, "Kategorie": kind, "Bild": one, "Bilder": f"{one}, {two}"}],
        }[system]  # fmt: skip
    return rows


@pytest.mark.parametrize("system", ["Wix", "Squarespace", "Amazon", "Etsy", "Shopware", ""])
def test_other_systems_and_languages(tmp_path, system):
    names = [f"{i}.jpg" for i in range(COUNT)] + [f"{i}b.jpg" for i in range(COUNT)]
    catalog = taken(shop(tmp_path / "raw", others(system), names, sep=";"), tmp_path / "out")
    assert counts(catalog) == (COUNT, COUNT, COUNT)
    assert set(catalog.products["category"]) == set(KINDS)
    account = health(catalog)["products"]
    assert account["read"] == account["kept"] + account.get("merged", 0)


@pytest.mark.parametrize("name", ["[1] {a} $HOME", "a::b #2 'q' \"d\"", "商品 Ж é", "*?%20&", " blank "])
def test_folders_of_any_name(tmp_path, name):
    rows = [plain(i, image=f"{name}/{i}.jpg") for i in range(COUNT)]
    folder = shop(tmp_path / name, rows, [f"{name}/{i}.jpg" for i in range(COUNT)])
    catalog = taken(folder, tmp_path / f"out {name}")
    assert counts(catalog) == (COUNT, COUNT, 0)
    assert catalog.images(8)[1].all()
    assert len(Catalog.open(catalog.folder)) == COUNT
