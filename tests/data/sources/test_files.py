"""`makelib.data.sources.files`, with `rows`, `photos`, `labels`, `terse`: what must hold when a folder becomes a catalogue.

- every kind of broken file or row that sellers send costs what it should and no more, and a line says so
- rows in = rows kept + rows dropped, whatever comes in
- what is kept is kept as it came: titles letter by letter, photographs byte by byte
- an import that is killed leaves the old catalogue whole
- generated queries: truth from the labels, no intent and no string in two splits, cold products without training clicks
- terse sellers hide what they should, from whom they should, and nothing else; careless photographers likewise
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from makelib.data.catalog import Catalog
from makelib.data.sources import open_catalog
from makelib.data.sources.files import careless, labels, terse
from makelib.data.sources.files.health import health_report
from makelib.data.sources.files.importer import default_options, import_catalog, import_folder
from makelib.data.sources.files.options import ImportOptions, read_options
from makelib.runtime import UserError
from makelib.settings import Files, preset

FASHION = Path(os.environ.get("MAKELIB_FASHION", Path(__file__).parents[4] / "shared" / "data" / "fashion"))
needs_fashion = pytest.mark.skipif(
    not (FASHION / "products.csv").is_file(), reason="the fashion photographs are not here (set MAKELIB_FASHION)"
)

COLOURS, KINDS = ("Red", "Navy Blue", "Green"), ("Shirts", "Shoes")


def jpeg(colour: str | tuple = "red", size: tuple[int, int] = (6, 8), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rows_of(count: int) -> list[dict[str, str]]:
    """`count` good products, 6 combinations of type and colour, no two titles alike."""
    return [
        {
            "product_id": f"p{i}",
            "title": f"Seller Men {COLOURS[i % 3]} {KINDS[i % 2]} {i}",
            "article_type": KINDS[i % 2],
            "base_colour": COLOURS[i % 3],
            "image": "",
        }
        for i in range(count)
    ]


def write_csv(folder: Path, rows: list[dict[str, str]], table: str = "products") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{table}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clean folder of 60 products whose photographs show their colours."""
    rows = rows_of(60)
    (tmp_path / "raw" / "images").mkdir(parents=True)
    for i, row in enumerate(rows):
        row["image"] = f"images/p{i}.jpg"
        paint = {"Red": "red", "Navy Blue": "navy", "Green": "green"}[row["base_colour"]]
        (tmp_path / "raw" / row["image"]).write_bytes(jpeg(paint, (6 + i, 8)))
    write_csv(tmp_path / "raw", rows)
    return tmp_path / "raw"


def small(**changes) -> ImportOptions:
    return ImportOptions(**{"queries": 30, "clicks": 300, "label_columns": ("article_type", "base_colour")} | changes)


def quarantine(catalog: Catalog) -> pd.DataFrame:
    return pd.read_csv(catalog.folder / "quarantine.csv", dtype=str, keep_default_na=False)


def health(catalog: Catalog) -> dict:
    return json.loads((catalog.folder / "health.json").read_text(encoding="utf-8"))


def bytes_of(catalog: Catalog, row: int) -> bytes | None:
    return pq.read_table(catalog.folder / "products.parquet")["image"][row].as_py()["bytes"]


# -- a clean folder ---------------------------------------------------------------------------------------------------


def test_clean_folder(folder, tmp_path):
    catalog = import_catalog(folder, tmp_path / "out", small())
    assert len(catalog) == 60
    assert catalog.products["title"].tolist() == [row["title"] for row in rows_of(60)]
    assert catalog.products["category"].tolist() == [row["article_type"] for row in rows_of(60)]
    assert catalog.attributes.iloc[1].dropna().to_dict() == {"article_type": "Shoes", "base_colour": "Navy Blue"}
    assert all(bytes_of(catalog, i) == (folder / f"images/p{i}.jpg").read_bytes() for i in (0, 17, 59))
    assert catalog.image(0).getpixel((0, 0))[0] > 250
    assert quarantine(catalog).empty
    assert health(catalog)["products"] == {"read": 60, "kept": 60, "dropped": 0, "left_out": 0, "reasons": {}}
    assert catalog.info["attribute_kinds"] == {"article_type": "type", "base_colour": "visual"}
    assert catalog.info["generated_queries"] is True
    assert catalog.info["notes"][0].startswith("GENERATED QUERIES")
    report = health_report(catalog)
    assert "| products | 60 | 60 | 0 | 0 |" in report
    assert "Nothing in quarantine." in report
    assert "Latin 60" in report


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_format_of_the_table_does_not_matter(folder, tmp_path, suffix):
    expected = import_catalog(folder, tmp_path / "expected", small())
    table = pd.read_csv(folder / "products.csv")
    (folder / "products.csv").unlink()
    if suffix == "parquet":
        table.astype({"base_colour": "category"}).to_parquet(folder / "products.parquet")
    else:
        table.to_json(folder / "products.jsonl", orient="records", lines=True)
    assert import_catalog(folder, tmp_path / "out", small(name="raw")).fingerprint == expected.fingerprint


def test_same_seed_same_catalogue_and_limit_draws(folder, tmp_path):
    options = small(limit=40, hide_share=0.5, hide_columns=("base_colour",))
    first, second = (import_catalog(folder, tmp_path / name, options) for name in "ab")
    assert first.fingerprint == second.fingerprint
    assert len(first) == 40
    assert health(first)["products"]["left_out"] == 20
    other = import_catalog(folder, tmp_path / "c", small(limit=40, seed=1))
    assert set(other.products["product_id"]) != set(first.products["product_id"])


def test_usual_column_names_are_guessed_and_images_found_by_id(tmp_path):
    rows = [
        {"id": row["product_id"], "productDisplayName": row["title"], "articleType": row["article_type"]}
        for row in rows_of(60)
    ]
    write_csv(tmp_path / "raw", rows)
    (tmp_path / "raw" / "images").mkdir()
    (tmp_path / "raw" / "images" / "p3.jpg").write_bytes(jpeg("blue"))
    with pytest.raises(UserError, match="no query can be generated"):  # two types of 30 each are too many
        import_catalog(tmp_path / "raw", tmp_path / "out", ImportOptions())
    write_csv(tmp_path / "raw", [{"query": "shirt", "product_id": "p0"}], "interactions")
    catalog = import_catalog(tmp_path / "raw", tmp_path / "out", ImportOptions())
    assert catalog.image(3).getpixel((2, 2))[2] > 250
    assert catalog.image(4) is None
    assert catalog.products["category"][0] == "Shirts"


def test_catalogue_yaml_is_read_and_flags_win(folder, tmp_path):
    text = (folder / "products.csv").read_text().replace("product_id,title", "nr,text", 1)
    (folder / "products.csv").write_text(text)
    (folder / "catalogue.yaml").write_text(
        "name: mine\nqueries: 30\nclicks: 300\ncolumns: {product_id: nr, title: text}\n"
        "attribute_kinds: {article_type: visual}\n"
    )
    catalog = import_catalog(folder, tmp_path / "out", read_options(folder, name="yours", limit=None))
    assert read_options(folder, columns={"title": "other"}).columns == {"product_id": "nr", "title": "other"}
    assert catalog.name == "yours"
    assert catalog.info["attribute_kinds"]["article_type"] == "visual"
    assert len(catalog) == 60


# -- mistakes of the user ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "products.csv").unlink(), "holds no products.csv"),
        (lambda f: (f / "products.jsonl").write_text("{}"), "keep one of them"),
        (lambda f: (f / "products.csv").write_text(""), "is empty"),
        (lambda f: (f / "products.csv").write_text("product_id,title\n"), "has no rows"),
        (lambda f: (f / "products.csv").write_text("nr,words\n1,a\n"), r"lacks product_id and title; .* nr, words"),
        (lambda f: (f / "products.csv").write_text("id,title,title\n1,a,b\n"), "stands twice"),
        (lambda f: (f / "products.csv").write_bytes(b"id,title,M\xfcll\n1,a,b\n"), "header is not utf-8"),
        (lambda f: (f / "catalogue.yaml").write_text("colums: {}\n"), "colums"),
        (lambda f: (f / "catalogue.yaml").write_text("limit: many\n"), "limit"),
        (lambda f: (f / "catalogue.yaml").write_text("[1"), "Cannot read"),
        (lambda f: (f / "catalogue.yaml").write_text("- 1\n"), "must hold a mapping"),
        (lambda f: (f / "catalogue.yaml").write_text("columns: {titel: text}\n"), "no column 'titel' to map"),
        (lambda f: (f / "catalogue.yaml").write_text("columns: {image: photos}\n"), "no column 'photos'"),
        (lambda f: (f / "catalogue.yaml").write_text("hide_columns: [tint]\n"), "no column 'tint'"),
        (lambda f: (f / "catalogue.yaml").write_text("query_columns: [brand]\n"), "'brand' is no label"),
        (lambda f: (f / "catalogue.yaml").write_text("hide_share: 70\n"), "hide_share is a share"),
        (lambda f: (f / "catalogue.yaml").write_text("careless: 30\n"), "careless is a share"),
        (
            lambda f: (f / "catalogue.yaml").write_text("attribute_kinds: {base_colour: seen}\n"),
            "use type, visual or textual",
        ),
        (lambda f: (f / "catalogue.yaml").write_text("encoding: utf-9\n"), "no encoding 'utf-9'"),
        (lambda f: write_csv(f, [{"query_id": "q", "query": "a"}], "queries"), "has queries but no interactions"),
        (lambda f: write_csv(f, [{"product_id": "p0"}], "interactions"), "lacks query"),
        (lambda f: write_csv(f, [{"product_id": "x", "query": "a"}], "interactions"), "no interaction could be kept"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(folder, tmp_path, change, message):
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        import_catalog(folder, tmp_path / "out", read_options(folder))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_embedded_images_and_broken_parquet_are_told(folder, tmp_path):
    (folder / "products.csv").unlink()
    path = folder / "products.parquet"
    pq.write_table(pa.table({"id": ["1"], "title": ["a"], "image": [{"bytes": b"x", "path": ""}]}), path)
    with pytest.raises(UserError, match="holds the images themselves"):
        import_catalog(folder, tmp_path / "out")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="Cannot read"):
        import_catalog(folder, tmp_path / "out")


def test_a_raw_folder_is_imported_once_and_again_when_it_changes(folder, tmp_path):
    settings = preset("smoke").replace(**{"files.queries": 30, "files.clicks": 300})
    first = open_catalog(str(folder), settings, tmp_path / "data")
    stamp = (first.folder / "products.parquet").stat().st_mtime_ns
    again = open_catalog(str(folder), settings, tmp_path / "data")
    assert (again.folder, (again.folder / "products.parquet").stat().st_mtime_ns) == (first.folder, stamp)
    write_csv(folder, rows_of(50))
    assert len(open_catalog(str(folder), settings, tmp_path / "data")) == 50
    write_csv(folder, rows_of(50))
    (folder / "images" / "p1.jpg").write_bytes(jpeg("white", (6, 9)))
    assert len({first.folder, open_catalog(str(folder), settings, tmp_path / "data").folder}) == 2


def test_only_catalogues_are_replaced(folder, tmp_path):
    for target in (folder, tmp_path):
        with pytest.raises(UserError, match="holds the folder to import"):
            import_catalog(folder, target, small())
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    with pytest.raises(UserError, match="is no catalogue"):
        import_catalog(folder, tmp_path / "letters", small())
    assert (tmp_path / "letters" / "dear.txt").read_text() == "dear"
    with pytest.raises(UserError, match="There is no folder"):
        import_catalog(tmp_path / "nowhere", tmp_path / "out", small())
    old = import_catalog(folder, tmp_path / "out", small())
    new = import_catalog(folder, tmp_path / "out", small(limit=50))
    assert (len(old), len(new)) == (60, 50)
    (tmp_path / "out" / "health.json").unlink()
    with pytest.raises(UserError, match=r"no health\.json"):
        health_report(new)


# -- broken photographs -----------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG file by hand, so that its header can lie."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8))
BROKEN = {
    "truncated jpeg": (encoded(NOISE, "JPEG")[:-900], "is a broken image"),
    "truncated png": (encoded(NOISE, "PNG")[:-900], "is a broken image"),
    "corrupt png": (encoded(NOISE, "PNG").replace(b"IDAT", b"IDAT\xff", 1), "is a broken image"),
    "empty": (b"", "is an empty file"),
    "text": (b"<html>404 not found</html>", "is not an image that can be read"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is not an image that can be read"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
    "large": (encoded(Image.new("1", (7000, 7000)), "PNG"), "has more than 40 million pixels"),
    "bomb": (png(60_000, 60_000), "has more than 40 million pixels"),
    "heavy": (jpeg() + bytes(33 * 2**20), "is larger than 32 MiB"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_photograph_costs_the_image_only(folder, tmp_path, name):
    content, reason = BROKEN[name]
    (folder / "images" / "p7.jpg").write_bytes(content)
    catalog = import_catalog(folder, tmp_path / "out", small())
    assert len(catalog) == 60
    assert catalog.image(7) is None
    assert catalog.image(6) is not None
    (line,) = quarantine(catalog).to_dict("records")
    assert line["reason"].startswith(reason)
    assert (line["table"], line["row"], line["product_id"]) == ("products", "8", "p7")
    assert (line["file"], line["action"]) == ("images/p7.jpg", "image dropped")
    assert sum(health(catalog)["images"]["dropped"].values()) == health(catalog)["images"]["missing"] == 1
    with pytest.raises(UserError, match="products row 8 is" if "is" in reason.split()[0] else "products row 8 has"):
        import_catalog(folder, tmp_path / "strict", small(strict=True))
    assert not (tmp_path / "strict").exists()


def test_paths_that_leave_the_folder(folder, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(jpeg("white"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.jpg").write_bytes(jpeg("white"))
    (folder / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "images" / "inside.jpg").symlink_to(folder / "images" / "p5.jpg")
    (folder / "images" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "linked").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "images" / "pipe.jpg")
    unsafe = {
        "../secret.jpg": "leaves the folder",
        "images/../../secret.jpg": "leaves the folder",
        str(tmp_path / "secret.jpg"): "leaves the folder",
        "images/link.jpg": "leaves the folder",
        "linked/a.jpg": "leaves the folder",
        "linked/../secret.jpg": "leaves the folder",  # a link is followed before its ..
        "/dev/zero": "leaves the folder",
        "images/pipe.jpg": "is no regular file",
        "images": "is no regular file",
        "images/loop.jpg": ("cannot be opened", "is no regular file"),
        "images/none.jpg": "does not exist",
        "images/p5.jpg/x": "does not exist",
        "x" * 5000: ("cannot be opened", "does not exist"),
        "https://shop.example/1.jpg": "is an address",
    }
    safe = {
        str(folder / "images" / "p5.jpg"): 5,
        "images/inside.jpg": 5,
        "p5.jpg": 5,
        "./images/../images/p5.jpg": 5,
        " ": None,
    }
    rows = rows_of(60)
    for row, cell in zip(rows, [*unsafe, *safe], strict=False):
        row["image"] = cell
    write_csv(folder, rows)
    catalog = import_catalog(folder, tmp_path / "out", small())
    lines = quarantine(catalog)
    assert lines["row"].astype(int).tolist() == list(range(1, len(unsafe) + 1))
    for line, expected in zip(lines["reason"], unsafe.values(), strict=True):
        assert line.startswith(expected)
    for row, source in enumerate(safe.values(), start=len(unsafe)):
        expected = None if source is None else (folder / "images" / f"p{source}.jpg").read_bytes()
        cell = pq.read_table(catalog.folder / "products.parquet")["image"][row].as_py()
        assert (cell and cell["bytes"]) == expected


def with_odd_exif(data: bytes, tag: int, kind: int, value: bytes) -> bytes:
    """A JPEG turned by EXIF that holds one more tag, of another type than the standard's."""
    entries = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHI", tag, kind, 1) + value
    exif = b"Exif\0\0II" + struct.pack("<HIH", 42, 8, 2) + entries + bytes(12)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def odd_images() -> dict[str, tuple[bytes, str, tuple, tuple]]:
    """Whole files of odd kinds: bytes, what health calls them, the colours a person sees at top left, bottom right."""
    red, blue, white, grey = (255, 0, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)
    halves = Image.new("RGB", (16, 16), red)
    halves.paste(blue, (0, 8, 16, 16))  # red above blue
    see_through = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    see_through.paste((255, 0, 0, 255), (0, 0, 16, 8))
    palette = halves.convert("P", palette=Image.Palette.ADAPTIVE)
    below = palette.getpixel((0, 15))
    deep = Image.fromarray(np.full((16, 16), 128 * 257, dtype=np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn clockwise
    sideways = halves.transpose(Image.Transpose.ROTATE_90)
    frames = [Image.new("RGB", (16, 16), colour) for colour in (red, blue)]
    more = {"save_all": True, "append_images": frames[1:]}
    return {
        "cmyk": (encoded(halves.convert("CMYK"), "JPEG", quality=100), "CMYK", red, blue),
        "palette": (encoded(palette, "PNG"), "P", red, blue),
        "palette with a hole": (encoded(palette, "PNG", transparency=below), "P", red, white),
        "see-through": (encoded(see_through, "PNG"), "RGBA", red, white),
        "grey": (encoded(Image.new("L", (16, 16), 128), "JPEG"), "L", grey, grey),
        "16 bit": (encoded(deep, "PNG"), "I;16", grey, grey),
        "float": (encoded(Image.new("F", (16, 16), 0.5), "TIFF"), "F", grey, grey),
        "bitmap": (encoded(Image.new("1", (16, 16), 1), "PNG"), "1", white, white),
        "animated gif": (encoded(frames[0], "GIF", **more), "P, animated", red, red),
        "animated webp": (encoded(frames[0], "WEBP", lossless=True, **more), "RGB, animated", red, red),
        "turned": (encoded(sideways, "JPEG", exif=turned, quality=100), "RGB, turned by EXIF", red, blue),
        **{
            f"turned, odd {name}": (with_odd_exif(encoded(sideways, "JPEG", quality=100), *tag), "RGB, turned by EXIF", red, blue)
            for name, tag in {
                "resolution": (0x11A, 10, struct.pack("<I", 38)), "text": (0x11A, 2, b"72\0\0"), "short": (0x128, 8, struct.pack("<hh", -1, 0)),
                "long": (0x100, 9, struct.pack("<i", -5)), "type": (0x11A, 99, bytes(4)), "place": (0x11A, 5, b"\xff" * 4),
            }.items()
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", odd_images())
def test_odd_photograph_is_kept_as_it_is_and_shown_right(folder, tmp_path, name):
    content, mode, top, bottom = odd_images()[name]
    (folder / "images" / "p7.jpg").write_bytes(content)
    catalog = import_catalog(folder, tmp_path / "out", small(strict=True))
    assert bytes_of(catalog, 7) == content
    pixels, present = catalog.images(16)
    assert present[7]
    shown = np.asarray(catalog.image(7))
    for picture in (shown, pixels[7]):
        assert np.abs(picture[2, 2].astype(int) - top).max() < 12
        assert np.abs(picture[-3, -3].astype(int) - bottom).max() < 12
    assert any(key.startswith(mode) for key in health(catalog)["images"]["modes"])


# -- several photographs of one product -------------------------------------------------------------------------------


def all_bytes(catalog: Catalog, row: int) -> list[bytes]:
    """First and further photographs as they are kept."""
    record = (
        pq.read_table(catalog.folder / "products.parquet", columns=["image", "images"]).slice(row, 1).to_pylist()[0]
    )
    return [cell["bytes"] for cell in [record["image"], *record["images"]] if cell]


def test_a_cell_may_list_further_photographs(folder, tmp_path):
    (folder / "images" / "clip").mkdir()
    frames = [jpeg((i, 0, 0), (9, 9), quality=95) for i in range(0, 200, 10)]
    for i, frame in enumerate(frames):
        (folder / "images" / "clip" / f"{i:03d}.jpg").write_bytes(frame)
    photo = {i: (folder / "images" / f"p{i}.jpg").read_bytes() for i in range(60)}
    given = {
        0: ("images/p0.jpg", "images/p1.jpg|images/p2.jpg", [photo[0], photo[1], photo[2]]),
        1: ("images/p1.jpg", '["images/p3.jpg", "images/p1.jpg"]', [photo[1], photo[3]]),  # named twice, kept once
        2: ("", "p4.jpg", [photo[4]]),
        3: ("images/p3.jpg", "images/none.jpg| images/p5.jpg |../secret.jpg", [photo[3], photo[5]]),
        4: ("images/none.jpg", "images/p6.jpg", [photo[6]]),  # a broken first one does not cost the others
        5: ("images/p5.jpg", "", [photo[5]]),
        6: ("", "", []),
        7: ("", "images/clip", [frames[i] for i in (0, 3, 5, 8, 11, 14, 16, 19)]),  # a clip's frames, evenly spread
        8: ("images/p8.jpg", "[broken", [photo[8]]),
    }
    rows = rows_of(60)
    for row in rows:
        row["images"] = ""
    for place, (first, further, _) in given.items():
        rows[place]["image"], rows[place]["images"] = first, further
    write_csv(folder, rows)
    catalog = import_catalog(folder, tmp_path / "out", small())
    for place, (*_, expected) in given.items():
        assert all_bytes(catalog, place) == expected, place
    assert catalog.further_images(8)[1].tolist() == [0, 0, 1, 3, *[7] * 7]
    lines = quarantine(catalog)
    assert lines[["row", "file"]].to_numpy().tolist() == [
        ["4", "images/none.jpg"], ["4", "../secret.jpg"], ["5", "images/none.jpg"], ["9", "[broken"],
    ]  # fmt: skip
    images = health(catalog)["images"]
    assert (images["present"], images["missing"]) == (8, 52)
    assert (images["further"], images["products_with_several"], images["beyond_8_a_product"]) == (11, 4, 12)
    with pytest.raises(UserError, match="images_per_product must be at least 1"):
        read_options(folder, images_per_product=0)


def test_a_folder_of_photographs_that_bears_the_id(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "image"} for row in rows_of(50)]
    write_csv(tmp_path / "raw", rows)
    (tmp_path / "raw" / "images" / "p3").mkdir(parents=True)
    for name, colour in (("b.jpg", "blue"), ("a.jpg", "red")):
        (tmp_path / "raw" / "images" / "p3" / name).write_bytes(jpeg(colour))
    (tmp_path / "raw" / "images" / "p4.jpg").write_bytes(jpeg("green"))
    catalog = import_catalog(tmp_path / "raw", tmp_path / "out", small())
    assert all_bytes(catalog, 3) == [jpeg("red"), jpeg("blue")]
    assert all_bytes(catalog, 4) == [jpeg("green")]
    assert all_bytes(catalog, 5) == []


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_lists_of_paths_in_parquet_and_json_lines(folder, tmp_path, suffix):
    frame = pd.DataFrame(rows_of(60)).drop(columns="image")
    frame["images"] = [[f"images/p{i}.jpg", f"images/p{(i + 1) % 60}.jpg"] for i in range(60)]
    (folder / "products.csv").unlink()
    if suffix == "parquet":
        frame.to_parquet(folder / "products.parquet")
    else:
        frame.to_json(folder / "products.jsonl", orient="records", lines=True)
    catalog = import_catalog(folder, tmp_path / "out", small())
    assert all_bytes(catalog, 7) == [(folder / f"images/p{i}.jpg").read_bytes() for i in (7, 8)]


# -- broken rows ------------------------------------------------------------------------------------------------------


def test_broken_rows_cost_the_row(folder, tmp_path):
    good = [",".join(row.values()).encode() for row in rows_of(50)]
    bad = {
        b"p1,Again,Shirts,Red,": "repeats an id (row 2 is kept)",
        b",No id,Shirts,Red,": "has no id",
        b"  ,No id,Shirts,Red,": "has no id",
        b"n1,NUL \x00 here,Shirts,Red,": "holds a NUL byte",
        "n2,Müller,Shirts,Red,".encode("latin-1"): "is not valid utf-8 text",
        "n3,商品,Shirts,Red,".encode("gb18030"): "is not valid utf-8 text",
        b"n4,Too short,Shirts": "has a wrong number of cells (3, the header 5)",
        b"n5,Too, many,Shirts,Red,": "has a wrong number of cells (6, the header 5)",
        b'n6,"left open,Shirts,Red,': "is not valid CSV",
        b'n7,"a" quote,Shirts,Red,': "is not valid CSV",
        b'n8,"' + b"x" * 1_000_100 + b'",Shirts,Red,': "is not valid CSV (field larger than field limit (1000000))",
        b"n9,,Shirts,Red,": "has neither title nor image",
        b"n10, ,Shirts,Red,": "has neither title nor image",
    }
    kept = {
        "k1": 'Quotes "and" commas, "all" of them',
        "k2": "Two\nlines\r\nor three",
        "k3": "x" * 100_000,
        "k4": "Müller 商品 قميص 👕",
        "k5": "  spaces stay  ",
        "k6": "\ufeffmark inside",
    }
    lines = list(good)
    for place, line in enumerate(bad):
        lines.insert(3 * place + 4, line)
    quoted = io.StringIO()
    csv.writer(quoted).writerows([key, title, "Shirts", "Red", ""] for key, title in kept.items())
    header = ",".join(rows_of(1)[0]).encode()
    content = b"\xef\xbb\xbf" + b"\n".join([header, *lines, b"", b""]) + quoted.getvalue().encode()
    (folder / "products.csv").write_bytes(content)
    catalog = import_catalog(folder, tmp_path / "out", small())
    titles = catalog.products.set_index("product_id")["title"]
    assert titles[list(kept)].to_dict() == kept
    assert len(catalog) == 50 + len(kept)
    found = quarantine(catalog).sort_values("row", key=lambda rows: rows.astype(int))
    assert found["row"].astype(int).tolist() == [3 * place + 5 for place in range(len(bad))]
    for reason, expected in zip(found["reason"], bad.values(), strict=True):
        assert reason.startswith(expected)
    account = health(catalog)["products"]
    assert account["read"] == account["kept"] + account["dropped"] == 50 + len(kept) + len(bad)
    with pytest.raises(UserError, match="13 broken rows"):
        import_catalog(folder, tmp_path / "strict", small(strict=True))


def test_other_encodings_when_told(folder, tmp_path):
    text = (folder / "products.csv").read_text().replace("Seller", "Müller")
    (folder / "products.csv").write_text(text, encoding="latin-1")
    catalog = import_catalog(folder, tmp_path / "out", small(encoding="latin-1"))
    assert catalog.products["title"][0].startswith("Müller")
    (folder / "products.csv").write_text(text, encoding="utf-16")  # says so itself
    assert import_catalog(folder, tmp_path / "out", small()).products["title"][0].startswith("Müller")
    (folder / "products.csv").write_text(text.replace(",", ";"), encoding="utf-8")
    assert import_catalog(folder, tmp_path / "out", small()).products["title"][0].startswith("Müller")


def test_broken_json_lines_and_parquet_rows(folder, tmp_path):
    (folder / "products.csv").unlink()
    lines = [json.dumps(row).encode() for row in rows_of(50)]
    bad = [
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"product_id": "\\ud800"}',
        b'{"product_id": "n\\u0000"}',
        b'{"title": "x"}',
        b"1" * 5000,
    ]
    whole = [b'{"product_id": 7, "title": null, "image": "images/p1.jpg"}', b"", b'{"product_id": "8", "title": 12.0}']
    (folder / "products.jsonl").write_bytes(b"\n".join(lines + bad + whole))
    catalog = import_catalog(folder, tmp_path / "out", small())
    assert catalog.products["product_id"].tolist()[50:] == ["7", "8"]
    assert catalog.products["title"].tolist()[50:] == ["", "12"]
    assert quarantine(catalog)["row"].astype(int).tolist() == list(range(51, 51 + len(bad)))
    (folder / "products.jsonl").unlink()
    raw = [row["title"].encode() for row in rows_of(50)]
    raw[9] = b"M\xfcller"
    frame = pd.DataFrame(rows_of(50))
    table = pa.table(
        {name: frame[name].tolist() for name in frame} | {"title": pa.array(raw, pa.binary()).view(pa.string())}
    )
    pq.write_table(table, folder / "products.parquet")
    catalog = import_catalog(folder, tmp_path / "out", small())
    assert quarantine(catalog)[["row", "reason"]].to_numpy().tolist() == [["10", "is not valid utf-8 text"]]


cells = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["", "p1", "p2", '"', "a,b", "\0", "x\ny", "images/p1.jpg", "../x"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.lists(cells, min_size=4, max_size=6).map(lambda row: ("cells", row))
        | st.binary(max_size=30).map(lambda raw: ("raw", raw)),
        max_size=12,
    )
)
def test_rows_in_are_rows_kept_plus_rows_dropped(tmp_path_factory, lines):
    tmp_path = tmp_path_factory.mktemp("any")
    good = rows_of(45)
    write_csv(tmp_path / "raw", good)
    with open(tmp_path / "raw" / "products.csv", "ab") as file:
        for kind, line in lines:
            text = io.StringIO()
            if kind == "cells":
                csv.writer(text).writerow(line)
            file.write(text.getvalue().encode() if kind == "cells" else line + b"\n")
    catalog = import_catalog(tmp_path / "raw", tmp_path / "out", small(queries=5, clicks=20))
    account, listed = health(catalog)["products"], quarantine(catalog)
    assert account["read"] == account["kept"] + account["dropped"] + account.get("merged", 0)
    assert account["kept"] == len(catalog)
    assert account["dropped"] == (listed["action"] == "row dropped").sum() == sum(account["reasons"].values())
    assert catalog.products["title"].tolist()[:45] == [row["title"] for row in good]
    if all(kind == "cells" for kind, _ in lines):  # then the number of rows is known without reading CSV
        assert account["read"] == 45 + len(lines)


asked_cells = st.sampled_from(
    ["", "a", "b", "c", "p0", "p1", "p59", "1", "0.5", "-1", "nan", "x", "train", "click", "seen"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    queries=st.lists(st.lists(asked_cells, min_size=2, max_size=4), max_size=8),
    interactions=st.lists(st.lists(asked_cells, min_size=3, max_size=5), max_size=12),
    limit=st.sampled_from([0, 40]),
)
def test_queries_and_interactions_are_accounted_for(tmp_path_factory, queries, interactions, limit):
    tmp_path = tmp_path_factory.mktemp("asked")
    write_csv(tmp_path / "raw", rows_of(60))
    tables = {
        "queries": ("query_id,query,split", [["good", "red shirt", "train"], *queries]),
        "interactions": (
            "query_id,product_id,label,kind",
            [*(["good", f"p{i}", "1", "click"] for i in range(60)), *interactions],
        ),
    }
    for table, (header, rows) in tables.items():
        (tmp_path / "raw" / f"{table}.csv").write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    catalog = import_catalog(tmp_path / "raw", tmp_path / "out", small(limit=limit))
    listed = quarantine(catalog)
    for table, (_, rows) in tables.items():
        account = health(catalog)[table]
        assert account["read"] == len(rows) == account["kept"] + account["dropped"] + account["left_out"]
        assert account["dropped"] == (listed["table"] == table).sum()
        assert account["kept"] == len(getattr(catalog, table))


# -- people's queries -------------------------------------------------------------------------------------------------


def test_interactions_and_queries_of_people(folder, tmp_path):
    write_csv(
        folder,
        [
            {"query_id": "a", "query": "red shirt", "split": "train"},
            {"query_id": "b", "query": "shoes", "split": "test"},
            {"query_id": "c", "query": "unanswered", "split": "test"},
            {"query_id": "a", "query": "again", "split": "test"},
            {"query_id": "", "query": "no id", "split": "test"},
            {"query_id": "d", "query": " ", "split": "test"},
            {"query_id": "e", "query": "when", "split": "later"},
        ],
        "queries",
    )
    write_csv(
        folder,
        [
            {"query_id": "a", "product_id": "p0", "label": "4", "kind": "judgment"},
            {"query_id": "b", "product_id": "p1", "label": "1", "kind": "judgment"},
            {"query_id": "x", "product_id": "p1", "label": "1", "kind": ""},
            {"query_id": "a", "product_id": "nobody", "label": "1", "kind": ""},
            {"query_id": "a", "product_id": "p2", "label": "grand", "kind": ""},
            {"query_id": "a", "product_id": "p2", "label": "nan", "kind": ""},
            {"query_id": "a", "product_id": "p2", "label": "1;2", "kind": ""},
            {"query_id": "a", "product_id": "p2", "label": "", "kind": ""},
            {"query_id": "a", "product_id": "p2", "label": "1", "kind": "glance"},
        ],
        "interactions",
    )
    catalog = import_catalog(folder, tmp_path / "out", small())
    assert catalog.info["generated_queries"] is False
    assert catalog.queries["query"].tolist() == ["red shirt", "shoes"]
    assert catalog.interactions["label"].tolist() == [1.0, 0.25]
    assert catalog.relevance(np.array([0]))[0, 0] == 1.0
    assert any("divided by the largest, 4" in note for note in catalog.info["notes"])
    accounts = health(catalog)
    account = {key: accounts["queries"][key] for key in ("read", "kept", "dropped", "left_out")}
    assert account == {"read": 7, "kept": 2, "dropped": 4, "left_out": 1}
    assert accounts["interactions"]["reasons"] == {
        "names an unknown query": 1,
        "names an unknown product": 1,
        "has a label that is neither a number nor a known word": 4,
        "has an unknown kind": 1,
    }
    assert accounts["interactions"]["read"] == 9
    assert "| interactions | has an unknown kind | 1 |" in health_report(catalog)


def test_interactions_alone_bring_the_queries(folder, tmp_path):
    rows = [{"query": f"query {i // 3}", "product_id": f"p{i}"} for i in range(60)]
    write_csv(folder, rows, "interactions")
    catalog = import_catalog(folder, tmp_path / "out", small(limit=30))
    assert set(catalog.interactions["kind"]) == {"click"}
    account = health(catalog)["interactions"]
    assert (account["kept"], account["left_out"], account["dropped"]) == (30, 30, 0)
    assert catalog.queries.groupby("query")["split"].nunique().max() == 1
    assert set(catalog.queries["split"]) == {"train", "validation", "test"}


# -- killed -----------------------------------------------------------------------------------------------------------

KILLED = """
import sys, time
from pathlib import Path
from makelib.data.sources.files import importer
write = importer.write_catalog
def slowly(folder, products, **rest):
    def stream():
        for number, part in enumerate(products):
            yield part
            if number == 1:
                print("half", flush=True)
                time.sleep(60)
    return write(folder, products=stream(), **rest)
importer.write_catalog = slowly
importer.import_catalog(Path(sys.argv[1]), Path(sys.argv[2]), importer.ImportOptions())
"""


def test_killed_import_leaves_the_old_catalogue_whole(folder, tmp_path):
    old = import_catalog(folder, tmp_path / "out", small())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    write_csv(folder, rows_of(700))
    write_csv(folder, [{"query": "shirt", "product_id": "p0"}], "interactions")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, folder, tmp_path / "out"],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout.readline() == "half\n"
        assert list(tmp_path.glob(".out-*/products.parquet"))  # the new one is being written
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = Catalog.open(tmp_path / "out")
    assert again.fingerprint == old.fingerprint
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
    assert len(import_catalog(folder, tmp_path / "out", small())) == 700
    assert not list(tmp_path.glob(".out-*")), "what the killed one left is gone"


def test_a_full_disk_leaves_the_old_catalogue_and_says_so(folder, tmp_path):
    old = import_catalog(folder, tmp_path / "out", small())
    write_csv(folder, rows_of(59))
    code = (
        "import resource, signal, sys; from makelib.__main__ import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(['data', 'import', sys.argv[1], '--out', sys.argv[2]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert Catalog.open(tmp_path / "out").fingerprint == old.fingerprint
    assert not list(tmp_path.glob(".out-*"))


# -- generated queries ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> tuple[pd.DataFrame, list[str], np.ndarray]:
    """2,000 products of 8 types, 10 colours, 12 brands, some duplicated."""
    random = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "type": random.choice([f"Type{i}s" for i in range(8)], 2000),
            "colour": random.choice(["Navy Blue", *(f"Hue{i}" for i in range(9))], 2000),
            "brand": random.choice([f"Maker{i}" for i in range(12)], 2000),
            "season": random.choice(["Summer", "Winter"], 2000),
        },
        dtype=object,
    )
    frame.loc[::50, "colour"] = ""
    titles = [
        f"{b} {c} {t[:-1]} {i}" for i, (b, c, t) in enumerate(zip(frame.brand, frame.colour, frame.type, strict=True))
    ]
    titles[1000:1100] = titles[:100]
    groups, placeholders = labels.duplicate_groups(titles, [None] * 2000)
    assert placeholders == 0
    return frame, titles, groups


@pytest.fixture(scope="module")
def asked(world) -> labels.Asked:
    frame, titles, groups = world
    return labels.ask(
        frame, titles, groups, columns=["type", "colour", "brand"], category="type", queries=500, clicks=5000, seed=3
    )  # fmt: skip


def test_relevant_products_are_those_whose_labels_meet_the_constraints(world, asked):
    frame, *_ = world
    for constraints in asked.queries["constraints"]:
        meets = np.all([frame[column] == value for column, value in constraints.items()], axis=0)
        assert 2 <= meets.sum() <= 100
        assert "" not in constraints.values()
        for column in constraints if len(constraints) > 1 else ():  # each constraint narrows the result
            rest = [frame[other] == value for other, value in constraints.items() if other != column]
            assert np.all(rest, axis=0).sum() > meets.sum()


def test_strings_and_splits(asked):
    queries = asked.queries
    assert abs(len(queries) - 500) <= 2
    assert queries["query"].is_unique
    assert (queries["query"] == queries["query"].str.lower()).all()
    assert queries["query"].str.split().str.len().between(1, 4).all()
    assert queries.groupby("intent")["split"].nunique().max() == 1
    shares = queries.drop_duplicates("intent")["split"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.01)
    assert (queries["intent"].value_counts() > 1).mean() > 0.4  # paraphrases
    ours = queries[queries["constraints"].map(lambda c: "colour" in c and "type" in c)]
    assert len(ours) > 50
    for row in ours.itertuples():  # colour before type, where both are said
        said, kind = row.query, row.constraints["type"].lower()[:-1]
        if kind in said and row.constraints["colour"].lower() in said:
            assert said.index(row.constraints["colour"].lower()) < said.index(kind)
    without = [row for row in queries.itertuples() if "type" in row.constraints and "type" not in row.query]
    for row in without:  # the type is left unsaid only where the rest tells it
        assert len(row.constraints) > 1
    assert any("types" not in query and "type" in query for query in queries["query"])  # singular, as titles have it


def test_clicks(world, asked):
    frame, _, groups = world
    split = asked.queries.set_index("query_id")["split"]
    clicks = asked.interactions
    assert len(clicks) == 5000
    constraints = asked.queries.set_index("query_id")["constraints"]
    kinds = frame["type"].to_numpy()
    values = {column: frame[column].to_numpy() for column in frame}
    right = np.array(
        [
            all(values[k][p] == v for k, v in constraints[q].items())
            for q, p in zip(clicks["query_id"], clicks["product"], strict=True)
        ]
    )
    assert 0.05 <= (~right).mean() <= 0.10
    assert asked.summary["wrong_clicks"] == pytest.approx((~right).mean(), abs=1e-3)
    for query, product in clicks.loc[~right, ["query_id", "product"]].itertuples(index=False):
        if "type" in constraints[query]:  # wrong, but of the category
            assert kinds[product] == constraints[query]["type"]
    train = clicks["query_id"].map(split).to_numpy() == "train"
    assert 0.10 < asked.cold.mean() <= 0.15
    assert not asked.cold[clicks.loc[train, "product"]].any()
    assert asked.cold[clicks.loc[~train, "product"]].any()
    assert pd.Series(asked.cold).groupby(groups).nunique().max() == 1  # whole groups
    assert set(clicks.loc[~train, "query_id"]) == set(split.index[split != "train"])
    counts = clicks.loc[right, "product"].value_counts()
    assert counts.iloc[:100].sum() > 3 * counts.sum() * 100 / 2000  # popularity is skewed


def test_asked_columns(world):
    frame, *_ = world
    frame = frame.assign(group=frame["type"].map(lambda t: "A" if t < "Type4s" else "B"), year=["2011", "2012"] * 1000)
    frame["weight"] = ["10", "20"] * 1000
    assert labels.asked_columns(frame, "type") == ["type", "colour", "brand"]
    for i in range(9):
        frame[f"other{i}"] = ["x", "y", "z", "w"] * 500
    assert labels.asked_columns(frame, "type") == ["type", "colour", "brand", "other0", "other1", "other2"]


def test_nothing_to_ask():
    frame = pd.DataFrame({"type": [f"t{i}" for i in range(30)]}, dtype=object)
    asked = labels.ask(
        frame, ["a"] * 30, np.arange(30), columns=["type"], category="type", queries=9, clicks=9
    )  # fmt: skip
    assert asked.queries.empty
    assert asked.interactions.empty


def test_brands():
    titles = (
        [f"Red Tape Men Shoes {i}" for i in range(8)]
        + [f"Red Chief Men Shoes {i}" for i in range(8)]
        + [f"Nike {word} Shoe" for word in ("Men", "Women", "Air", "Dart", "Men's", "Kids", "Old")]
        + [f"United Colors of Benetton Men Shirt {i}" for i in range(6)]
        + [f"Men Shirt {i}" for i in range(9)]
        + ["Lone Wolf Shirt", ""]
    )
    brands, lengths = labels.learn_brands(titles, {"men", "women", "red", "shoes", "shirts"}, minimum=5)
    assert set(brands) == {"Red Tape", "Red Chief", "Nike", "United Colors of Benetton", ""}
    assert brands[0] == "Red Tape"
    assert brands[-1] == brands[-2] == brands[-3] == ""
    assert all(title[:length] == brand for title, brand, length in zip(titles, brands, lengths, strict=True))


def test_groups_join_titles_and_pixels():
    titles = ["A b", "a  B", "c", "d", "", "", "e", "f"]
    pixels = [b"1", None, b"2", b"2", None, None, b"1", b"3"]
    groups, _ = labels.duplicate_groups(titles, pixels)
    assert groups.tolist() == [0, 0, 1, 1, 2, 3, 0, 4]
    groups, placeholders = labels.duplicate_groups([f"t{i}" for i in range(30)], [b"no photo"] * 30)
    assert (len(set(groups)), placeholders) == (30, 1)
    groups, placeholders = labels.duplicate_groups([f"t{i % 2}" for i in range(30)], [b"same"] * 30)
    assert (len(set(groups)), placeholders) == (1, 0)


# -- terse sellers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "hidden"),
    [
        ("Nike Men Navy Blue Shirt", "Nike Men Shirt"),
        ("Nike BLUE shirt", "Nike shirt"),
        ("Nike Bluetooth Speaker", "Nike Bluetooth Speaker"),
        ("Red Tape Men Red Shoes", "Red Tape Men Shoes"),
        ("Nike Red & Navy-Blue / Off White Striped Shirt", "Nike Shirt"),
        ("Nike Shirt - Red", "Nike Shirt"),
        ("Nike Shirt, red and blue", "Nike Shirt"),
        ("Nike Red, White and You Shirt", "Nike and You Shirt"),
        ("Red", "Red"),
        ("", ""),
        ("红色连衣裙", "连衣裙"),
        ("新款红色连衣裙", "新款连衣裙"),
        ("新款 红色 连衣裙", "新款 连衣裙"),
        ("新款红色和米白连衣裙", "新款连衣裙"),
        ("Nike红色Air", "Nike Air"),
        ("白领口红", "白领口红"),
        ("नीला सूट", "सूट"),
        ("नीलाभ सूट", "नीलाभ सूट"),
        ("नीलांबर सूट", "नीलांबर सूट"),
    ],
)
def test_hidden_words(title, hidden):
    phrases = terse.vocabulary(["Navy Blue", "Red", "Off White", "红色", "米白", "नीला", "नील"])
    keep = np.array([8 if title.startswith("Red Tape") else 0])
    (written,), _ = terse.hide([title], {*phrases, "striped"}, np.array([True]), keep)
    assert written == hidden
    (untouched,), (is_terse,) = terse.hide([title], phrases, np.array([False]), keep)
    assert (untouched, is_terse) == (title, False)


def test_names():
    titles = ["Navy shirt", "Blue shirt", "Red Tape shoes", "Bluetooth", "shirt"]
    values = ["Navy Blue", "Navy Blue", "Red", "Blue", ""]
    keep = np.array([0, 0, 8, 0, 0])
    assert terse.names(titles, values, keep).tolist() == [True, True, False, False, False]


def test_terse_sellers(folder, tmp_path):
    options = small(hide_columns=("base_colour",), hide_words=("seller",), hide_share=0.6, learn_brand=False)
    catalog = import_catalog(folder, tmp_path / "out", options)
    is_terse = catalog.truth["terse"].to_numpy()
    assert 0.3 < is_terse.mean() < 0.9
    for row, (title, quiet) in enumerate(zip(catalog.products["title"], is_terse, strict=True)):
        full = rows_of(60)[row]
        expected = f"Men {full['article_type']} {row}" if quiet else full["title"]
        assert title == expected
    assert (catalog.truth["title_names_base_colour"].to_numpy() == ~is_terse).all()
    assert catalog.attributes["base_colour"].tolist() == [row["base_colour"] for row in rows_of(60)]
    assert catalog.info["hidden"]["named_before"]["base_colour"] == 1.0
    assert catalog.info["hidden"]["named_after"]["base_colour"] == pytest.approx((~is_terse).mean(), abs=1e-4)
    assert any(note.startswith("TERSE SELLERS") for note in catalog.info["notes"])
    assert "TERSE SELLERS" in health_report(catalog)
    fewer = import_catalog(folder, tmp_path / "fewer", ImportOptions(**{**vars(options), "limit": 40}))
    same = dict(zip(catalog.products["product_id"], is_terse, strict=True))
    assert [same[key] for key in fewer.products["product_id"]] == fewer.truth["terse"].tolist()


def test_careless_photographers(folder, tmp_path):
    several = pd.read_csv(folder / "products.csv")
    several["image"] += "|images/p0.jpg"
    several.loc[0, "image"] = None  # whoever has no photograph has none that could be spoiled
    several.to_csv(folder / "products.csv", index=False)
    (folder / "images" / "p0.jpg").write_bytes(jpeg("white", (20, 20)))
    options = small(careless=0.6)
    clean, spoiled = (import_catalog(folder, tmp_path / n, o) for n, o in (("clean", small()), ("spoiled", options)))
    kinds = spoiled.truth["careless"].to_numpy()
    assert set(clean.truth["careless"]) == {""}
    assert kinds[0] == ""
    assert set(kinds) == {"", *careless.KINDS}
    assert spoiled.info["notes"][0].startswith("GENERATED QUERIES")
    said = next(note for note in spoiled.info["notes"] if note.startswith("CARELESS PHOTOGRAPHERS"))
    assert said.startswith(f"CARELESS PHOTOGRAPHERS: {(kinds != '').sum()} of 59 products")
    assert f"{(kinds == 'blurred').sum()} blurred" in said
    before, after = (pq.read_table(c.folder / "products.parquet")["image"].to_pylist() for c in (clean, spoiled))
    shown = {cell["bytes"]: row for row, cell in enumerate(before) if cell}
    for row, kind in enumerate(kinds):
        if not kind:
            assert before[row] == after[row]
        elif kind == "replaced":
            other = shown[after[row]["bytes"]]
            assert clean.products["category"][other] == clean.products["category"][row]
            assert clean.products["group"][other] != clean.products["group"][row]
        else:
            assert after[row]["bytes"] not in shown
    further = pq.read_table(spoiled.folder / "products.parquet")["images"].to_pylist()
    assert [len(cell) for cell in further] == [0 if k == "replaced" else 1 for k in ["replaced", *kinds[1:]]]
    pd.testing.assert_frame_equal(
        clean.products[["product_id", "title", "group"]], spoiled.products[["product_id", "title", "group"]]
    )
    fewer = import_catalog(folder, tmp_path / "fewer", ImportOptions(**{**vars(options), "limit": 40}))
    same = dict(zip(spoiled.products["product_id"], kinds, strict=True))
    assert [same[key] for key in fewer.products["product_id"]] == fewer.truth["careless"].tolist()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_mode_of_photograph_can_be_spoiled(mode):
    suffix = "JPEG" if mode in ("L", "CMYK") else "PNG"
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).convert(mode)
    kinds = np.array(careless.KINDS[:3], dtype=object)
    parts = [[[encoded(image, suffix)]] * 2, [[encoded(image, suffix)]]]
    found = [photo for part in careless.spoiled(parts, ["a", "b", "c"], kinds, lambda row: b"") for (photo,) in part]
    blurred, marked, covered = (np.asarray(Image.open(io.BytesIO(photo)), float) for photo in found)
    assert {photo.shape for photo in (blurred, marked, covered)} == {(40, 30, 3)}
    assert blurred.std() < 0.2 * np.asarray(image.convert("RGB")).std()
    assert marked[14:18, 2:28].std(axis=(0, 1)).max() < 12  # one colour, but for what JPEG makes of it
    assert covered[8:32, 6:24].std() < 12


def test_careless_photographers_are_uneven_and_as_many_as_asked_for():
    ids, types, brands = [
        [f"{name}{i % n}" for i in range(40_000)] for name, n in (("p", 40_000), ("t", 40), ("b", 41))
    ]
    kinds = careless.drawn(ids, types, brands, 0.3, seed=1)
    assert (kinds != "").mean() == pytest.approx(0.3, abs=0.05)
    shares = pd.Series(kinds != "").groupby(types).mean()
    assert 0.1 < shares.min() < 0.2
    assert 0.4 < shares.max() < 0.5
    assert pd.Series(kinds[kinds != ""]).value_counts(normalize=True).between(0.23, 0.27).all()
    assert (careless.drawn(ids, types, brands, 0.0, seed=1) == "").all()


def test_default_options_hide_only_where_titles_tell_all(folder):
    options = default_options(folder, Files(limit=50, queries=30, hide_share=0.7))
    assert (options.hide_columns, options.hide_share, options.limit) == (("base_colour",), 0.7, 50)
    assert {"striped", "printed"} <= set(options.hide_words)
    (folder / "catalogue.yaml").write_text("hide_share: 0\nlimit: 0\n")
    assert (default_options(folder).hide_share, default_options(folder).limit) == (0.0, 0)
    (folder / "catalogue.yaml").unlink()
    rows = rows_of(60)
    for row in rows[:40]:
        row["title"] = "Seller Men"
    write_csv(folder, rows)
    assert default_options(folder).hide_share == 0.0


# -- other languages --------------------------------------------------------------------------------------------------

#: columns (id, title, type, colour, brand), brands, colours, types, title
LANGUAGES = {
    "Chinese": ("商品编号 标题 类目 颜色 品牌", "耐克 李宁", "红色 白色 藏青色", "连衣裙 运动鞋", "{brand}新款{colour}{kind}{i}号"),
    "Japanese": ("id title category カラー ブランド", "ナイキ アシックス", "赤色 白色 紺色", "ワンピース スカート", "{brand} 新作 {colour}{kind} {i}"),
    "Arabic": ("id title category اللون ماركة", "نايك أديداس", "أحمر أبيض أزرق", "فستان حذاء", "{kind} {colour} {brand} جديد {i}"),
    "Hindi": ("id title category रंग ब्रांड", "नाइकी बाटा", "लाल सफ़ेद नीला", "साड़ी कुर्ता", "{brand} नई {colour} {kind} {i}"),
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogues_in_other_languages(language, tmp_path):
    columns, brands, colours, kinds = (text.split() for text in LANGUAGES[language][:4])
    cells = [(colours[i % 3], kinds[i % 2], brands[i // 6 % 2]) for i in range(60)]
    titles = [LANGUAGES[language][4].format(colour=c, kind=k, brand=b, i=i) for i, (c, k, b) in enumerate(cells)]
    table = [(f"p{i}", title, k, c, b) for i, (title, (c, k, b)) in enumerate(zip(titles, cells, strict=True))]
    write_csv(tmp_path / "raw", [dict(zip(columns, row, strict=True)) for row in table])
    catalog = import_folder(tmp_path / "raw", tmp_path / "out", Files(queries=30, clicks=300))
    assert catalog.info["attribute_kinds"] == dict(zip(columns[2:], ("type", "visual", "textual"), strict=True))

    is_terse = catalog.truth["terse"].tolist()
    assert 0.4 < np.mean(is_terse) < 0.95
    for hidden, title, (colour, *_), quiet in zip(catalog.products["title"], titles, cells, is_terse, strict=True):
        expected = title.replace(colour, "") if quiet else title
        assert hidden == " ".join(expected.split())

    spaced = language not in ("Chinese", "Japanese")
    strings = catalog.queries["query"]
    for query, constraints in zip(strings, catalog.queries["constraints"], strict=True):
        said = [value for value in constraints.values() if value in query]
        assert sorted(query.replace(" ", "")) == sorted("".join(said))
        assert query.count(" ") == (len(said) - 1 if spaced else 0)
    assert strings.str.contains((" " if spaced else "").join((colours[0], kinds[0])), regex=False).any()


# -- real photographs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> Catalog:
    return import_folder(
        FASHION, tmp_path_factory.mktemp("data") / "fashion", Files(limit=1500, queries=800, clicks=8000)
    )


@needs_fashion
def test_fashion_photographs_are_byte_for_byte(fashion):
    assert len(fashion) == 1500
    images = pq.read_table(fashion.folder / "products.parquet", columns=["image"])["image"].to_pylist()
    for row in range(0, 1500, 50):
        source = (FASHION / "images" / f"{fashion.products['product_id'][row]}.jpg").read_bytes()
        assert images[row]["bytes"] == source
        assert np.array_equal(np.asarray(fashion.image(row)), np.asarray(Image.open(io.BytesIO(source)).convert("RGB")))


@needs_fashion
def test_fashion_is_the_experiment_of_the_method(fashion):
    hidden = fashion.info["hidden"]
    assert hidden["named_before"]["base_colour"] > 0.9
    assert hidden["named_after"]["base_colour"] < 0.35
    assert {"article_type", "base_colour", "gender", "usage", "brand"} == set(fashion.info["generated"]["columns"])
    brands = set(fashion.attributes["brand"])
    assert {"Nike", "Puma", "United Colors of Benetton"} <= brands
    assert not brands & {"Men", "Women", "Black", "Blue"}
    rows = fashion.query_rows("test")
    assert len(rows) > 100
    relevant = (fashion.relevance(rows) == 1).sum(axis=1)
    assert relevant.min() >= 2
    assert relevant.max() <= 75
    visual = fashion.queries["constraints"].map(lambda constraints: "base_colour" in constraints)
    assert visual.mean() > 0.3
    terse_rows = fashion.truth["terse"].to_numpy()
    assert not fashion.truth["title_names_base_colour"].to_numpy()[terse_rows].any()


@needs_fashion
@pytest.mark.slow
def test_all_of_fashion_is_kept(tmp_path):
    catalog = import_folder(FASHION, tmp_path / "fashion", Files(limit=0))
    assert len(catalog) == 20_000
    assert quarantine(catalog).empty
    assert catalog.images(16)[1].all()
