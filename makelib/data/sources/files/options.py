"""What `catalogue.yaml` and the command line may say about a folder of one's own, and what is guessed without them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dacite

from makelib.runtime import UserError
from makelib.settings import STRICT, read_mapping

#: a column with more distinct values is text, not a label
MOST_VALUES = 200
#: makelib's name of a column -> the names it goes by, without case and punctuation, best first
PRODUCT_COLUMNS = {
    "product_id": ("productid", "id", "sku", "handle", "itemid", "articleid", "asin", "parentasin", "docid", "corpusid", "productnumber", "itemsku", "artikelnummer", "artikelnr", "identifiant", "référence", "referencia", "商品id", "商品编号", "编号"),
    "title": (
        "title", "producttitle", "productdisplayname", "productname", "displayname", "prodname", "name", "itemname", "titel", "bezeichnung", "artikelname", "produktname", "titre", "título", "titulo", "nombre", "标题", "商品标题", "商品名称", "名称",
    ),
    "image": (
        "image", "imagelink", "imagesrc", "mainimage", "primaryimage", "imagepath", "imagefile", "imagename", "filename", "photo", "picture", "img", "imageurl", "mainimageurl", "bild", "foto", "imagen", "图片", "主图",
    ),
    "images": (
        "images", "imageurls", "additionalimagelink", "additionalimagelinks", "imagelinks", "gallery", "imagepaths", "imagefiles", "furtherimages", "additionalimages", "frames", "photos", "pictures", "bilder", "fotos", "imágenes", "图集",
    ),
    "text": ("text",),
    "category": (
        "category", "articletype", "producttype", "producttypename", "type", "subcategory", "mastercategory", "maincategory", "department", "categories", "kategorie", "kategorien", "catégorie", "catégories", "categoría", "categoria",
        "类目", "品类", "类别", "分类",
    ),
}  # fmt: skip
#: further columns of photographs in a table of no known system, `image_2`, `gallery_images`, `photo_back`; without case and punctuation
IMAGE_COLUMN = re.compile(
    r"(main|primary|default|cover|base|first|second(ary)?|third|front|back|side|product|item|extra|additional|further|other|gallery|large|full|original)*"
    r"(image|photo|picture|img|pic|bild|foto|imagen|图片|主图)(s|er|es)?(url|uri|link|path|file|filename|src)?s?"
    r"(main|front|back|side|left|right|top|bottom|detail)?\d*"
)
QUERY_COLUMNS = {
    "query_id": ("queryid", "qid", "id"),
    "query": ("query", "querytext", "searchquery", "searchterm", "keyword", "text"),
    "split": ("split",),
    "intent": ("intent",),
}
INTERACTION_COLUMNS = {
    "query_id": ("queryid", "qid"),
    "query": ("query", "querytext", "searchquery", "searchterm", "keyword"),
    "product_id": ("productid", "itemid", "sku", "handle", "asin", "corpusid", "docid", "documentid", "id"),
    "label": ("label", "relevance", "score", "grade", "rel"),
    "kind": ("kind",),
    "clicks": ("clicks", "clickcount", "nclicks"),
    "impressions": ("impressions", "views", "shown", "impressioncount"),
    "carts": ("carts", "addtocart", "addtocarts", "cartadds"),
    "purchases": ("purchases", "orders", "conversions", "sales", "buys"),
    "position": ("position", "rank", "pos"),
    "timestamp": ("timestamp", "time", "date", "datetime", "eventtime"),
    "session": ("session", "sessionid"),
    "user": ("user", "userid", "visitor", "visitorid", "customerid"),
}


@dataclass(frozen=True)
class ImportOptions:
    """How a folder is read. The same keys may stand in its `catalogue.yaml`; what is given by hand wins."""

    #: what reports call the catalogue; empty: the folder's name
    name: str = ""
    #: makelib's column -> column of the files, such as {"title": "productDisplayName"}; for one table only, its name before a
    #: point: {"queries.query_id": "_id"}
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    #: read text that was encoded twice ("CafÃ©") as it was meant; without, it is counted and stays
    mend_text: bool = False
    #: what looks like an e-mail address or a telephone number in a title becomes [personal], as it always does in queries; false
    #: for shops whose article numbers look so
    mask_titles: bool = True
    #: products drawn at random from the good rows; 0 = all
    limit: int = 0
    seed: int = 0
    #: photographs or video frames kept of a product that has more: its first, and others evenly spread
    images_per_product: int = 8
    #: columns that become attributes; empty: those with few distinct values
    label_columns: tuple[str, ...] = ()
    #: "type", "visual" or "textual" by attribute; others: the category column is the type, and visual is what speaks of
    #: colour, pattern, shape by its name
    attribute_kinds: Mapping[str, str] = field(default_factory=dict)
    #: learn an attribute `brand` from first title words where no column tells it
    learn_brand: bool = True
    #: attributes that generated queries ask for; empty: see `labels.asked_columns`
    query_columns: tuple[str, ...] = ()
    queries: int = 4000
    clicks: int = 60000
    wrong_clicks: float = 0.075
    cold: float = 0.15
    #: terse sellers: a share of the titles loses the words of these attributes and these further words
    hide_columns: tuple[str, ...] = ()
    hide_words: tuple[str, ...] = ()
    hide_share: float = 0.0
    #: careless photographers: a share of the products has its photographs blurred, marked, covered or replaced
    careless: float = 0.0
    #: grades of labels in words beside those that are known (`judged.GRADES`), {"so so": 0.4}; and of logs: the grade of a
    #: pair by its strongest event (clicks 0.3, carts 0.6, purchases 1.0 unless stated here), whether
    #: position bias is taken out of clicks, and what the splits keep apart: intents, or time
    grades: Mapping[str, float] = field(default_factory=dict)
    debias: bool = False
    split_by: str = "intent"
    #: queries that fewer users or sessions asked are left out of everything; 0: none
    rare_queries: int = 0
    #: columns whose words follow the title's, in this order, `text_words` of them at most
    text_columns: tuple[str, ...] = ()
    text_words: int = 40
    #: fetch photographs that are https addresses; private and loopback hosts only where named here
    fetch: bool = False
    allow_hosts: tuple[str, ...] = ()
    #: where a larger share of a table's rows or of the photographs is lost, the import says so first and exits with code 3
    warn_share: float = 0.05
    #: anything that has to go into quarantine is an error
    strict: bool = False
    #: what else every report must say about the catalogue
    notes: tuple[str, ...] = ()


def read_options(folder: Path, **given: Any) -> ImportOptions:
    """Options from the folder's `catalogue.yaml`, if there is one, overruled by those `given` (None: not given).

    Raises `UserError` for unknown keys, wrong types and shares outside 0 to 1.
    """
    written = stated(folder)
    tree = written | {key: value for key, value in given.items() if value is not None}
    if isinstance(written.get("columns"), dict):
        tree["columns"] = written["columns"] | (given.get("columns") or {})
    try:
        options = dacite.from_dict(ImportOptions, tree, STRICT)
    except dacite.DaciteError as error:
        known = ", ".join(item.name for item in dataclasses.fields(ImportOptions))
        raise UserError(f"Import options of {folder}: {error}. Known: {known}.") from None
    if options.images_per_product < 1:
        raise UserError(f"images_per_product must be at least 1, not {options.images_per_product}.")
    for name in ("hide_share", "careless", "wrong_clicks", "cold", "warn_share"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"{name} is a share, 0 to 1, not {getattr(options, name)}.")
    known = {**PRODUCT_COLUMNS, **QUERY_COLUMNS, **INTERACTION_COLUMNS}
    if options.split_by not in ("intent", "time"):
        raise UserError(f"split_by is intent or time, not {options.split_by!r}.")
    if wrong := [name for name, value in options.grades.items() if not 0 <= value <= 1]:
        raise UserError(f"grades: that of {wrong[0]!r} is {options.grades[wrong[0]]:g}; grades are 0 to 1.")
    tables = {"products": PRODUCT_COLUMNS, "queries": QUERY_COLUMNS, "interactions": INTERACTION_COLUMNS}
    for column in options.columns:
        table, point, name = column.rpartition(".")
        if name not in (tables.get(table, ()) if point else known):
            raise UserError(f"columns: there is no column {column!r} to map; known: {', '.join(known)}.")
    if wrong := [kind for kind in options.attribute_kinds.values() if kind not in ("type", "visual", "textual")]:
        raise UserError(f"attribute_kinds: {wrong[0]!r} is unknown; use type, visual or textual.")
    return options


def stated(folder: Path) -> dict[str, Any]:
    """What the folder's `catalogue.yaml` says, empty without one."""
    path = Path(folder) / "catalogue.yaml"
    return read_mapping(path, "columns: {title: name}", blank={}) if path.is_file() else {}
