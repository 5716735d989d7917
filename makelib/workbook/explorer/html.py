"""The explorer's HTML: tables of hits in, strings out. Knows no model, no widget and no state.

Titles, ids, categories and queries are untrusted. Every one goes through `text` (between tags) or `attribute` (inside
quotes); pictures are redrawn and travel as `data:` URIs, so a page asks nobody for anything and runs no script.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib.resources
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from makelib.data.pictures import opened, rgb
from makelib.data.sources.files.photos import MOST_BYTES, inspect
from makelib.runtime import UserError
from makelib.search.explain import Evidence, Variation

#: longer side of a product's picture in pixels
THUMBNAIL = 160
#: row of a product -> `data:` URI of its picture, or None
Thumbnails = Callable[[int], str | None]

#: control characters, and those that turn the direction of all that follows them (Unicode TR 9)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


# -- untrusted text and pictures --------------------------------------------------------------------------------------


def plain(value: object) -> str:
    """Text for places that cannot isolate directions (lists, input boxes, attributes): control characters removed."""
    return _CONTROL.sub("", str(value))


def attribute(value: object) -> str:
    """Untrusted text inside a double-quoted attribute."""
    return html.escape(plain(value), quote=True)


def text(value: object, missing: str = "") -> str:
    """Untrusted text between tags: escaped, and isolated so that its direction ends with it."""
    if value is None or value != value or not str(value).strip():
        return f'<em class="mkx-missing">{missing}</em>' if missing else ""
    return f"<bdi>{html.escape(str(value), quote=True)}</bdi>"


def picture_uri(image: Image.Image, size: int = THUMBNAIL) -> str:
    """`data:` URI of a thumbnail, redrawn: no byte of the original file reaches the page."""
    small = image.convert("RGB")
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    kind = "PNG" if max(small.size) <= 64 else "JPEG"  # small pictures stay exact, photographs small
    small.save(buffer, kind, **({"optimize": True} if kind == "PNG" else {"quality": 82}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


#: the longer side, in pixels, of what is kept of a picture that somebody brings along
PICTURE_SIZE = 224
_URI = re.compile(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/]+=*)")


def own_picture(source: bytes | Path) -> str:
    """Somebody's own picture (a file or its bytes), checked as photographs of a catalogue are, as a small `data:` URI.

    Raises `UserError` for what is no picture, or too large a one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files
        photo = inspect(source)
    if photo.data is None:
        why = f"{photo.reason} ({photo.detail})" if photo.detail else photo.reason
        raise UserError(f"This picture {why}; give a JPEG, PNG or WEBP file of at most {MOST_BYTES >> 20} MiB.")
    return picture_uri(rgb(opened(photo.data, PICTURE_SIZE)), PICTURE_SIZE)


@functools.lru_cache(maxsize=8)
def decoded(uri: str) -> Image.Image:
    """The picture in a `data:` URI that `picture_uri` wrote. Raises `UserError` for any other."""
    found = _URI.fullmatch(uri) if len(uri) < 2**18 else None
    try:
        image = Image.open(io.BytesIO(base64.b64decode(found[1])), formats=("PNG", "JPEG"))
        if max(image.size) <= PICTURE_SIZE:
            return rgb(image)
    except Exception:  # no match, no base64, no picture
        pass
    raise UserError("The picture in this state is not one that the explorer kept; upload it again.")


def small_picture(uri: str | None) -> str:
    """Somebody's own picture as an image within a line, redrawn; nothing for None."""
    return f'<img class="mkx-own" src="{picture_uri(decoded(uri), 64)}" alt="your picture">' if uri else ""


@functools.cache
def style() -> str:
    """The style sheet, every rule of which is confined to the class `mkx`."""
    return f"<style>{importlib.resources.files('makelib.workbook').joinpath('static/explorer.css').read_text('utf-8')}</style>"


def page(*parts: str) -> str:
    """Parts under the one class that the style sheet is confined to."""
    return f'<div class="mkx">{"".join(parts)}</div>'


def working(said: str) -> str:
    """What stands in the place of an answer that takes its time."""
    return f'<div class="mkx-working" role="status">{text(said)}</div>'


def alert(sentence: str) -> str:
    return f'<div class="mkx-alert" role="alert">{text(sentence)}</div>' if sentence else ""


# -- results ----------------------------------------------------------------------------------------------------------


def tile(hit: Mapping, thumbnails: Thumbnails, chosen: bool = False) -> str:
    """One product as a card: picture, title, category, score, modal weights and, for a known query, its marks."""
    return (
        f'<article class="mkx-tile{" mkx-chosen" if chosen else ""}" data-rank="{hit["rank"]}" '
        f'data-product="{attribute(hit["product_id"])}">'
        f'<div class="mkx-picture">{_picture(hit, thumbnails)}<span class="mkx-rank">{hit["rank"]}</span>'
        f'<span class="mkx-marks">{marks(hit)}</span></div>'
        f'<div class="mkx-title" title="{attribute(hit["title"] or "")}">{text(hit["title"], "no title")}</div>'
        f'<div class="mkx-line"><span class="mkx-category">{text(hit["category"], "no category")}</span>'
        f'<span class="mkx-score" title="cosine of query and product">{hit["score"]:.3f}</span></div>'
        f"{weights(hit['weight_title'], hit['weight_image'])}</article>"
    )


def tiles(hits: pd.DataFrame, thumbnails: Thumbnails) -> str:
    """All hits as a grid of cards, in order."""
    cards = "".join(f"<li>{tile(hit, thumbnails)}</li>" for hit in hits.to_dict("records"))
    return f'<ol class="mkx-grid" aria-label="Results">{cards}</ol>'


def marks(hit: Mapping) -> str:
    """Relevance and clicks, as far as they are known; hovering says which of the query's wishes the product meets."""
    found = ""
    if hit["relevance"] == hit["relevance"]:
        kind = "full" if hit["relevance"] >= 1 else "part" if hit["relevance"] > 0 else "none"
        sign, said = {"full": ("✓", "relevant"), "none": ("✗", "not relevant")}.get(
            kind, (f"◐ {hit['relevance']:.0%}", "relevant")
        )
        found += f'<span class="mkx-mark mkx-{kind}" title="{attribute(hit["wishes"])}">{sign}<span class="mkx-long"> {said}</span></span>'
    clicked = (
        '<span class="mkx-mark mkx-clicked" title="clicked by shoppers">●<span class="mkx-long"> clicked</span></span>'
    )
    return found + (clicked if hit["clicked"] else "")


def weights(title: float, image: float) -> str:
    """The modal weights as a two-coloured bar with its numbers."""
    if title != title:
        return '<div class="mkx-weights mkx-noweights">no weights</div>'
    return (
        f'<div class="mkx-weights" role="img" aria-label="Modal weights: title {title:.0%}, image {image:.0%}">'
        f'<span class="mkx-bar"><span style="width:{100 * title:.1f}%"></span></span>'
        f"<span>title {title:.0%}</span><span>image {image:.0%}</span></div>"
    )


def status(query: str, found: str, doubt: str = "") -> str:
    """The line above the results: what was asked, and what came back. `found` is HTML; `doubt` what to know beforehand."""
    doubt = f'<span class="mkx-doubt">{text(doubt[:1].upper() + doubt[1:] + ".")}</span>' if doubt else ""
    return f'<div class="mkx-status" role="status"><b>{text(query, "no query")}</b> · {found}{doubt}</div>'


#: where the widget before it is alive the twin hides; where that cannot be shown, the page does not say so
_TWIN = """<style>
.jp-OutputArea-child:has(.mkx-panel) + .jp-OutputArea-child:has(.mkx-twin),
.jp-OutputArea-child:not(:has(.mkx-panel)):has(+ .jp-OutputArea-child .mkx-twin) { display: none; }
</style>"""


def twin(page: str) -> str:
    """A static page that stands beside its widget in one cell and shows only where the widget does not."""
    return f'{_TWIN}<div class="mkx-twin">{page}</div>'


# -- side by side -----------------------------------------------------------------------------------------------------

ROW, GAP = 58, 6  # pixels; the lines between the columns are drawn for rows of this height


def versus(
    names: tuple[str, str],
    hits: tuple[pd.DataFrame, pd.DataFrame],
    elsewhere: tuple[dict, dict],
    thumbnails: Thumbnails,
) -> str:
    """Two rankings beside one another, a line from each product's place in the left one to its place in the right one.

    Args:
        names: of the left and the right variant.
        hits: their results.
        elsewhere: for each side, row -> rank in the *other* variant's whole ranking.
    """
    left, right = (list(table["row"]) for table in hits)
    pitch, places = ROW + GAP, max(len(left), len(right))
    lines = []
    for start, row in enumerate(left):
        y = start * pitch + ROW / 2
        if row in right:
            end = right.index(row)
            kind = "up" if end < start else "down" if end > start else "same"
            z = end * pitch + ROW / 2
            lines.append(f'<path class="mkx-{kind}" d="M0 {y} C50 {y} 50 {z} 100 {z}"/>')
        else:
            lines.append(f'<path class="mkx-gone" d="M0 {y} H22"/>')
    lines += [
        f'<path class="mkx-gone" d="M78 {i * pitch + ROW / 2} H100"/>' for i, row in enumerate(right) if row not in left
    ]
    drawing = (
        f'<svg viewBox="0 0 100 {places * pitch}" style="--places:{places}" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(lines)}</svg>'
    )
    columns = []
    for side in (0, 1):
        rows = "".join(
            _row(hit, thumbnails, elsewhere[side][hit["row"]], moved=side == 1) for hit in hits[side].to_dict("records")
        )
        columns.append(
            f"<section><h3>{text(names[side])}</h3>"
            f'<ol class="mkx-list" aria-label="{attribute(names[side])}">{rows}</ol></section>'
        )
    return f'<div class="mkx-versus">{columns[0]}<div class="mkx-lines">{drawing}</div>{columns[1]}</div>'


def _row(hit: Mapping, thumbnails: Thumbnails, other: int, moved: bool) -> str:
    step = other - hit["rank"]
    if moved:
        kind, sign = (
            ("up", f"<i>▲</i> {step:,}") if step > 0 else ("down", f"<i>▼</i> {-step:,}") if step < 0 else ("same", "=")
        )
        move = f'<span class="mkx-move mkx-{kind}" title="rank {other} on the left">{sign}</span>'
    else:
        move = f'<span class="mkx-move" title="rank on the right">→ {other:,}</span>'
    return (
        f'<li class="mkx-row" data-rank="{hit["rank"]}" data-product="{attribute(hit["product_id"])}">'
        f'<span class="mkx-place">{hit["rank"]}</span><span class="mkx-small">{_picture(hit, thumbnails)}</span>'
        f'<span class="mkx-what"><span class="mkx-title">{text(hit["title"], "no title")}</span>'
        f'<span class="mkx-line"><span>{hit["score"]:.3f}</span>{marks(hit)}</span></span>{move}</li>'
    )


# -- why --------------------------------------------------------------------------------------------------------------


def why(
    hit: Mapping,
    found: Evidence,
    thumbnails: Thumbnails,
    neighbours: pd.DataFrame,
    keywords: Sequence[tuple[str, float]],
    products: int,
    sees: tuple[bool, bool] = (True, True),
    images: Sequence[str] = (),
) -> str:
    """The why panel: parts of the score, words, patches, photographs, keywords, neighbours.

    Args:
        hit: the product, as `tile` takes it.
        found: what speaks for it.
        neighbours: nearest other products, `row, title`.
        keywords: what Keyword Enhancement takes from the title, with weights.
        products: size of the catalogue.
        sees: whether this variant looks at titles, at images.
        images: thumbnails of the photographs, where there are several.
    """
    split = found.parts[0] == found.parts[0]
    parts = (
        _bars([("title", found.parts[0], "mkx-t"), ("image", found.parts[1], "mkx-i")])
        + weights(*found.weights)
        + "<p>The two parts add up to the score exactly.</p>"
        if split
        else "<p>This variant has no modal weights, and its score does not split into title and image.</p>"
    )
    seen = " ".join(
        f'<span class="mkx-word">{text(word)} <small>{weight:.2f}</small></span>' for word, weight in keywords
    )
    near = "".join(
        f"<figure>{_picture(other, thumbnails)}<figcaption>{text(other['title'], 'no title')}</figcaption></figure>"
        for other in neighbours.to_dict("records")
    )
    blocks = (
        _block(f"Score {found.score:.3f}, rank {found.rank:,} of {products:,}", parts)
        + _block("Patches that matter", _heat(hit, found.heat, thumbnails, sees[1]))
        + (_block("Photographs that matter", _images(images, found.images)) if len(images) and sees[1] else ""),
        _block("Words that matter", _words(found.words, sees[0]))
        + _block("Keywords that KE saw", f'<p class="mkx-words">{seen or "none"}</p>'),
        _block("Its neighbours in the index", f'<div class="mkx-near">{near}</div>'),
    )
    columns = "".join(f'<div class="mkx-column">{block}</div>' for block in blocks)
    return (
        f'<section class="mkx-why" aria-label="Why {attribute(hit["title"] or hit["product_id"])}">{_heading(hit, thumbnails)}'
        f'<div class="mkx-blocks">{columns}</div></section>'
    )


def what_if(before: Variation, after: Variation, said: str) -> str:
    """The what-if table: weights, score and rank of the product as it is, and as edited."""
    rows = "".join(
        f"<tr><th scope='row'>{name}</th><td>{weights(*v.weights)}</td><td>{v.score:.3f}</td><td>{v.rank:,}</td></tr>"
        for name, v in (("as listed", before), (said, after))
    )
    step = before.rank - after.rank
    places = f"{abs(step):,} place{'s' * (abs(step) != 1)}"
    verdict = f"It would {'rise' if step > 0 else 'fall'} by {places}." if step else "Its rank would stay."
    return (
        '<table class="mkx-whatif"><thead><tr><td></td><th scope="col">modal weights</th><th scope="col">score</th>'
        f'<th scope="col">rank</th></tr></thead><tbody>{rows}</tbody></table><p>{verdict}</p>'
    )


def _heading(hit: Mapping, thumbnails: Thumbnails) -> str:
    return (
        f'<div class="mkx-heading"><span class="mkx-small">{_picture(hit, thumbnails)}</span><div>'
        f'<div class="mkx-title">{text(hit["title"], "no title")}</div>'
        f'<div class="mkx-line">{text(hit["category"], "no category")} · {text(hit["product_id"])} {marks(hit)}</div>'
        "</div></div>"
    )


def _block(title: str, body: str) -> str:
    return f'<div class="mkx-block"><h3>{title}</h3>{body}</div>'


def _bars(values: Sequence[tuple[str, float, str]]) -> str:
    largest = max(abs(value) for _, value, _ in values) or 1.0
    return "".join(
        f'<div class="mkx-part"><span>{name}</span><span class="mkx-track">'
        f'<span class="{kind}{" mkx-minus" if value < 0 else ""}" style="width:{100 * abs(value) / largest:.1f}%">'
        f"</span></span><b>{value:+.3f}</b></div>"
        for name, value, kind in values
    )


def _words(words: Sequence[tuple[str, float]], sees: bool) -> str:
    if not words or not sees:
        return f"<p>{'This variant does not read titles.' if words else 'There is no title.'}</p>"
    largest = max(max(abs(fall) for _, fall in words), 1e-6)
    shown = " ".join(
        f'<span class="mkx-word {"mkx-for" if fall >= 0 else "mkx-against"}" '
        f'style="--much:{45 * abs(fall) / largest:.0f}%" title="left out, the score changes by {-fall:+.3f}">'
        f"{text(word)} <small>{fall:+.3f}</small></span>"
        for word, fall in words
    )
    return f'<p class="mkx-words">{shown}</p><p>How much the score falls when the word is left out.</p>'


def _heat(hit: Mapping, heat: np.ndarray | None, thumbnails: Thumbnails, sees: bool) -> str:
    uri = thumbnails(hit["row"])
    if heat is None or uri is None or not sees:
        return (
            f"<p>{'There is no image.' if heat is None or uri is None else 'This variant does not look at images.'}</p>"
        )
    drawn = picture_uri(heat_map(decoded(uri), heat))
    strongest = heat.flat[np.abs(heat).argmax()]
    return (
        f'<div class="mkx-heat"><img src="{uri}" alt="The image">'
        f'<img src="{drawn}" alt="The same image, coloured where it matters"></div>'
        f"<p>Covered in grey there, the score falls (<span class='mkx-key mkx-hot'></span> orange) or rises "
        f"(<span class='mkx-key mkx-cold'></span> blue), by at most {abs(strongest):.3f}.</p>"
    )


def _images(images: Sequence[str], falls: np.ndarray) -> str:
    shown = "".join(
        f'<figure><img src="{uri}" alt="Photograph {place}"><figcaption><b>{fall:+.3f}</b></figcaption></figure>'
        for place, (uri, fall) in enumerate(zip(images, falls, strict=True), start=1)
    )
    return f'<div class="mkx-near">{shown}</div><p>How much the score falls when the photograph is left out.</p>'


def heat_map(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in grey with `heat` (g, g) over it: orange where positive, blue where negative, clear where zero."""
    size = (max(160, image.width), max(160, image.height))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), np.float32)[..., None]
    share = heat / max(np.abs(heat).max(), 1e-6)
    share = np.asarray(Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))[
        ..., None
    ].clip(-1, 1)
    colour = np.where(share > 0, np.float32([230, 110, 0]), np.float32([0, 100, 200]))
    alpha = 0.8 * np.abs(share) ** 1.5
    return Image.fromarray((((0.6 * grey + 90) * (1 - alpha)) + colour * alpha).clip(0, 255).astype(np.uint8))


def _picture(hit: Mapping, thumbnails: Thumbnails) -> str:
    uri = thumbnails(hit["row"])
    if uri is None:
        return '<span class="mkx-nopicture">no image</span>'
    return f'<img src="{uri}" alt="{attribute(hit["title"] or "product without a title")}">'
