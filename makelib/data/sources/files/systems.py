"""Exports of shop systems, recognised by their columns: what each calls a product, its photographs, its category, its variants.

Columns as the systems' own export files and documentation name them, compared without case and punctuation. A file that fits none
is read by the usual names in `options`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from makelib.data.sources.files.readers import plain


@dataclass(frozen=True)
class System:
    """One system's export.

    `signs`: sets of columns, one of which must be there as a whole. `columns`: makelib's column -> its names, best first.
    `images`: patterns of the columns with photographs, in their order. `rows`: how rows that are no product of their own find
    theirs: by the same `id`, a `parent` column, or as those `below` it.
    """

    name: str
    signs: tuple[frozenset[str], ...]
    columns: Mapping[str, tuple[str, ...]]
    images: tuple[str, ...]
    rows: str = "id"
    #: columns of (name, value) pairs that state attributes, as patterns with a number
    pairs: tuple[str, str] = ("", "")
    #: separates the steps of a category path, and what stands between several paths
    path: str = ">"
    apart: str = ""


SYSTEMS = (
    System(
        "Shopify",
        (frozenset({"handle", "title", "imagesrc"}), frozenset({"handle", "title", "variantsku"}),
         frozenset({"urlhandle", "title"}), frozenset({"handle", "title", "bodyhtml"})),
        {"product_id": ("handle", "urlhandle"), "title": ("title",), "category": ("type", "producttype", "productcategory"),
         "position": ("imageposition",), "brand": ("vendor",), "description": ("bodyhtml", "description")},
        ("imagesrc", "productimageurl", "images?", "variantimage", "variantimageurl"),
        pairs=(r"option(\d+)name", r"option(\d+)value"),
    ),
    System(
        "WooCommerce",
        (frozenset({"id", "type", "sku", "name", "images"}), frozenset({"id", "name", "categories", "images"}),
         frozenset({"sku", "name", "categories", "images"})),
        {"product_id": ("id", "sku"), "title": ("name",), "category": ("categories",), "parent": ("parent",),
         "alias": ("sku",), "brand": ("brands", "brand"), "description": ("description", "shortdescription")},
        ("images",), rows="parent", pairs=(r"attribute(\d+)name", r"attribute(\d+)values?"), apart=",",
    ),
    System(
        "Google Merchant Center",
        (frozenset({"id", "title", "imagelink"}),),
        {"product_id": ("id",), "title": ("title",), "category": ("producttype", "googleproductcategory"),
         "brand": ("brand",), "description": ("description",)},
        ("imagelink", r"additionalimagelinks?\d*"),
    ),
    System(
        "Magento",
        (frozenset({"sku", "name", "baseimage"}), frozenset({"sku", "name", "attributesetcode"})),
        {"product_id": ("sku",), "title": ("name",), "category": ("categories",), "children": ("configurablevariations",),
         "stated": ("additionalattributes",), "description": ("description", "shortdescription")},
        ("baseimage", "additionalimages"), rows="parent", path="/", apart=",",
    ),
    System(
        "BigCommerce",
        (frozenset({"itemtype", "productname"}), frozenset({"item", "name", "imageurlimport"}),
         frozenset({"item", "name", "internalimageurlexport"})),
        {"product_id": ("productid", "id", "productcodesku", "sku"), "title": ("productname", "name"),
         "category": ("category", "categories"), "kind": ("itemtype", "item"), "brand": ("brandname", "brand"),
         "description": ("productdescription", "description")},
        (r"productimagefile\d+", r"productimageurl\d+", "imageurlimport", "internalimageurlexport", r"images?\d*"),
        rows="below", path="/", apart=";",
    ),
    System(
        "PrestaShop",
        (frozenset({"name", "imageurlsxyz"}), frozenset({"name", "categoriesxyz"}), frozenset({"name", "active01"})),
        {"product_id": ("productid", "id", "reference"), "title": ("name",), "category": ("categoriesxyz", "categories"),
         "stated": ("featurenamevaluepositioncustomized", "featurenamevalueposition", "features"),
         "brand": ("manufacturer", "brand"), "description": ("description", "summary", "shortdescription")},
        ("imageurlsxyz", "imageurls", "images?"), apart=",",
    ),
    System(
        "Wix",
        (frozenset({"handleid", "fieldtype", "name"}), frozenset({"handle", "fieldtype", "name"})),
        {"product_id": ("handleid", "handle"), "title": ("name",), "category": ("collection", "categories"), "brand": ("brand",),
         "description": ("description", "plaindescription")},
        ("productimageurl", "media"), pairs=(r"productoptionname(\d+)", r"productoptiondescription(\d+)"), apart=";",
    ),
    System(
        "Squarespace",
        (frozenset({"productidnoneditable", "title"}), frozenset({"title", "hostedimageurls"})),
        {"product_id": ("productidnoneditable", "productid", "producturl"), "title": ("title",), "category": ("categories",),
         "description": ("description",)},
        ("hostedimageurls",), rows="below", pairs=(r"optionname(\d+)", r"optionvalue(\d+)"), path="/", apart=",",
    ),
    System(
        "Amazon",
        (frozenset({"itemsku", "itemname"}),),
        {"product_id": ("itemsku",), "title": ("itemname",), "category": ("itemtype", "producttype", "feedproducttype"),
         "brand": ("brandname",), "description": ("productdescription",)},
        ("mainimageurl", r"otherimageurl\d+"),
    ),
    System(
        "Etsy",
        (frozenset({"title", "tags", "image1"}),),
        {"product_id": ("sku", "listingid"), "title": ("title",), "category": ("section",), "description": ("description",)},
        (r"image\d+",),
    ),
    System(
        "OpenCart",
        (frozenset({"productid", "name", "imagename"}), frozenset({"productid", "name", "model", "manufacturer"})),
        {"product_id": ("productid",), "title": ("name",), "category": ("category", "categories"), "brand": ("manufacturer",),
         "description": ("description",)},
        ("imagename", "image", r"additionalimages?\d*"), apart=",",
    ),
    System(
        "Odoo",
        (frozenset({"externalid", "name", "productcategory"}), frozenset({"id", "name", "categid"}),
         frozenset({"id", "name", "categidid"}), frozenset({"name", "internalreference"}), frozenset({"name", "defaultcode"})),
        {"product_id": ("externalid", "id", "internalreference", "defaultcode"), "title": ("name",),
         "category": ("productcategory", "categid", "categidid", "productcategoryname", "categidname"),
         "description": ("salesdescription", "descriptionsale")},
        ("image1920", "image", "imageurl"), path="/",
    ),
    System(
        "Square",
        (frozenset({"token", "itemname", "variationname"}),),
        {"product_id": ("referencehandle", "token"), "title": ("itemname",), "alias": ("sku",),
         "category": ("categories", "category", "reportingcategory"), "description": ("description",)},
        (r"images?(urls?)?\d*",), pairs=(r"optionname(\d+)", r"optionvalue(\d+)"), apart=",",
    ),
    System(
        "Lightspeed",
        (frozenset({"systemid", "item", "customsku"}), frozenset({"internalid", "internalvariantid"}),
         frozenset({"handle", "variantoptiononename", "name"})),
        {"product_id": ("internalid", "systemid", "handle"),
         "title": ("item", "name", *(f"{language}title{form}" for language in ("us", "uk", "en", "nl", "de", "fr", "es") for form in ("long", "short"))),
         "category": ("subcategory1", "category", "productcategory", "type", *(f"{language}category1" for language in ("us", "uk", "en", "nl", "de", "fr", "es"))),
         "brand": ("brand", "brandname"), "description": ("description",)},
        ("images?", "imageurls?"), pairs=(r"variantoption(one|two|three)name", r"variantoption(one|two|three)value"), apart=",",
    ),
    System(
        "Ecwid",
        (frozenset({"productinternalid", "productname"}),),
        {"product_id": ("productinternalid",), "title": ("productname",), "category": ("productcategory1",),
         "brand": ("productbrand",), "description": ("productdescription",)},
        ("productmediamainimageurl", r"productmediagalleryimageurl\d+"), path="/",
    ),
    System(
        "eBay",
        (frozenset({"title", "picurl"}), frozenset({"title", "customlabelsku"})),
        {"product_id": ("customlabel", "customlabelsku", "itemid", "itemnumber"), "title": ("title",),
         "category": ("ebaycategory1name", "categoryname", "category"), "alias": ("itemnumber", "itemid"), "description": ("description",)},
        ("picurl", "itemphotourl"),
    ),
    System(
        "Volusion",
        (frozenset({"productcode", "productname"}),),
        {"product_id": ("productcode",), "title": ("productname",), "category": ("categorytree", "categoryids"),
         "brand": ("productmanufacturer",), "description": ("productdescription",)},
        (r"photourl(small|large)?", "imageurl"),
    ),
    System(
        "Shopware",
        (frozenset({"productnumber", "name"}), frozenset({"productnumber", "translationsdefaultname"}),
         frozenset({"ordernumber", "mainnumber", "name"})),
        {"product_id": ("productnumber", "mainnumber"), "title": ("name", "translationsdefaultname"), "category": ("categories",),
         "brand": ("manufacturername", "supplier"), "description": ("description",)},
        ("covermediaurl", "media", "imageurls?", "images"), apart=r"\|",
    ),
)  # fmt: skip


def recognise(columns: Sequence[str]) -> System | None:
    """The system whose export has these columns, or None."""
    have = {plain(column) for column in columns}
    return next((system for system in SYSTEMS if any(sign <= have for sign in system.signs)), None)


@dataclass
class Item:
    """What a row says about a product: `key` names it; a `parent` is the key or alias of the product that it is part of."""

    key: str
    title: str
    category: str
    images: list[str]
    place: float = 0.0
    parent: str = ""
    alias: str = ""
    children: list[str] = field(default_factory=list)
    stated: dict[str, str] = field(default_factory=dict)


class Reading:
    """How the rows of one file are read: `mapping` makelib's column -> this file's, `images` the columns with photographs."""

    def __init__(
        self, system: System | None, mapping: Mapping[str, str], images: Sequence[str], columns: Sequence[str]
    ) -> None:
        self.system, self.mapping, self.images = system, dict(mapping), list(images)
        self._rows = system.rows if system else ""
        self._above, self._names = "", {}
        self._pairs: list[tuple[str, str, str]] = []  # number, column of the name, column of the value
        if system and system.pairs[0]:
            of = [{m[1]: c for c in columns if (m := re.fullmatch(pattern, plain(c)))} for pattern in system.pairs]
            self._pairs = [(number, of[0][number], of[1][number]) for number in of[0] if number in of[1]]

    def item(self, values: Mapping[str, str]) -> Item:
        def cell(column: str) -> str:
            return values[self.mapping[column]] if column in self.mapping else ""

        item = Item(cell("product_id"), cell("title"), cell("category"), [values[column] for column in self.images])
        if self.system is None:
            return item
        if not item.key.strip():
            item.key = cell("alias")
        item.category = leaf(item.category, self.system.path, self.system.apart)
        item.alias = cell("alias")
        item.stated = dict(self._stated(values, item.key)) | dict(_listed_attributes(cell("stated")))
        if self._rows == "parent":
            item.parent = re.sub(r"^id:\s*", "", cell("parent").strip())
            item.children = re.findall(r"(?:^|\|)\s*sku=([^,|]+)", cell("children"))
        elif self._rows == "below":
            # where no column tells the kind of row, those without an id are below
            if re.search(r"product", cell("kind"), re.IGNORECASE) if "kind" in self.mapping else item.key.strip():
                self._above = item.key
            else:
                item.parent, item.title = self._above, ""
        with_place = cell("position").strip()
        item.place = float(with_place) if with_place.isdecimal() else 0.0
        return item

    def _stated(self, values: Mapping[str, str], key: str) -> Iterator[tuple[str, str]]:
        """Attributes in pairs of columns; Shopify names an option on the first row of a product only."""
        for number, name_column, value_column in self._pairs:
            name, value = values[name_column].strip(), values[value_column].strip()
            if name:
                self._names[number] = (key, name)
            elif self._names.get(number, ("",))[0] == key:
                name = self._names[number][1]
            if name and value and name.casefold() != "title" and not re.search(r"[,|]", value):
                yield name, value


def _listed_attributes(cell: str) -> Iterator[tuple[str, str]]:
    """`color=Red,size=M` (Magento) or `Colour:Red:1,Material:Wool:2` (PrestaShop)."""
    for part in re.split(r",(?=\s*[\w ]+[=:])", cell):
        name, separator, value = part.partition("=" if "=" in part else ":")
        if separator and value and len(value) <= 60 and "|" not in value:
            yield name.strip(), value.split(":")[0].strip()


#: what systems call the category above all others
ROOTS = ("home", "root", "default category", "shop all", "all products")


def leaf(category: str, path: str = ">", apart: str = "") -> str:
    """The last step of the deepest path in a cell such as `Clothing > Shirts, Sale` or `Default Category/Bags`."""
    cell = html.unescape(category)
    several = re.split(rf"(?<!\\){apart}\s*", cell) if apart else [cell]
    paths = [re.split(rf"\s*{path}\s*", one.strip(" /")) for one in several]
    told = [path for path in paths if path[-1].casefold() not in ROOTS] or paths
    return max(told, key=len)[-1].replace("\\,", ",").strip()


#: HTML's own elements; other words between < and > are a seller's
_TAGS = (
    "a|abbr|b|big|blockquote|br|center|code|dd|del|div|dl|dt|em|font|h[1-6]|hr|i|img|ins|li|mark|ol|p|pre|q|s|small|span|"
    "strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul"
)
_TAG = re.compile(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_UNSEEN = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def text_of(markup: str) -> str:
    """HTML as text: elements go, entities become their letters (twice, for some shops encode them twice). Text without any
    comes back letter by letter."""
    if "<" not in markup and "&" not in markup:
        return markup
    text = _TAG.sub(" ", _UNSEEN.sub(" ", markup)) if "<" in markup else markup
    for _ in range(2):
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    text = _TAG.sub(" ", text)
    return markup if text == markup else " ".join(text.split())
