"""One notebook as one HTML page that opens without a network."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import latex2mathml.converter
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import Preprocessor

from makelib.runtime import atomic_file

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATES = Path(__file__).parents[1] / "templates"
#: nbconvert would say in the terminal that figures lack a description
QUIET_LOG = logging.getLogger("makelib.nbconvert")


def to_html(notebook: Path, target: Path, error: str = "", status: str = "failed") -> None:
    """Convert an executed notebook to one HTML file that makes no request and runs no script.

    Formulas become MathML, code folds away under its first line, and a widget is shown by its static `text/html` twin.
    `error` is shown at the head of the page, with how the notebook ended.
    """
    exporter = _Exporter(
        template_name="report", extra_template_basedirs=[str(TEMPLATES)], exclude_input_prompt=True,
        exclude_output_prompt=True, exclude_anchor_links=True, embed_images=True,
        log=QUIET_LOG,
    )  # fmt: skip
    exporter.register_preprocessor(_StaticWidgets, enabled=True)
    page, _ = exporter.from_filename(str(notebook), resources={"error": error, "status": status})
    write_text(target, _offline(page))


class _StaticWidgets(Preprocessor):
    """Leave the static twin of each widget; an output that holds nothing but a widget's name is dropped."""

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        nb.metadata.pop("widgets", None)
        for cell in nb.cells:
            kept = []
            for output in cell.get("outputs", ()):
                widget = output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
                if widget is None or set(output.data) - {"text/plain"}:
                    kept.append(output)
            if cell.cell_type == "code":
                cell.outputs = kept
        return nb, resources


class _Renderer(IPythonRenderer):
    """Markdown with formulas as MathML."""

    def inline_html(self, html: str) -> str:  # nbconvert would close every tag where it opens, to look for images
        return html

    block_html = inline_html

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, display="block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display="block")


class _Exporter(HTMLExporter):
    """nbconvert's HTML exporter with formulas rendered at conversion time."""

    @jinja2.pass_context
    def markdown2html(self, context: Mapping[str, Any], source: str) -> str:
        renderer = _Renderer(
            escape=False, attachments=context.get("cell", {}).get("attachments", {}), embed_images=self.embed_images,
            path=context["resources"]["metadata"].get("path", ""), exclude_anchor_links=True,
        )  # fmt: skip
        return MarkdownWithMath(renderer=renderer).render(source)

    def default_filters(self) -> Iterator[tuple[str, Callable]]:
        yield from super().default_filters()
        yield "mathml", lambda text: mathml(text.strip().strip("$"), display="block")


def mathml(formula: str, display: str = "inline") -> str:
    """A LaTeX formula as MathML; the source itself, as code, where it cannot be read."""
    try:
        return latex2mathml.converter.convert(formula.strip(), display=display)
    except Exception:  # the library raises a dozen classes, and IndexError for a brace too few
        return f"<code>{html.escape(formula)}</code>"


def _offline(page: str) -> str:
    """Take out of a page what could run or ask for something outside; the page's policy forbids it a second time."""
    soup = BeautifulSoup(page, "html.parser")
    for element in soup.select("script"):
        element.decompose()
    for element in soup.select("iframe, object, embed, link, base, form, meta[http-equiv=refresh]"):
        element.unwrap()  # an element that was left open holds the rest of the page
    for element in soup.find_all(True):
        for name, value in list(element.attrs.items()):
            value = " ".join(value) if isinstance(value, list) else str(value)
            link = element.name == "a" and name == "href"
            if link:  # a chapter's page stands where its notebook stood; what lies outside the notebooks' folder does not travel
                value = element.attrs[name] = re.sub(r"^(\w+)\.ipynb(?=#|$)", r"\1.html", value)
            outside = name in (
                "src",
                "srcset",
                "poster",
                "background",
                "href",
                "xlink:href",
                "action",
                "data",
            ) and not (
                re.match(
                    r"(https?:|mailto:|#|(?!\.\./|/)[\w./%-]*(#|$))" if link else r"(data:image/|#)",
                    value.strip(),
                    re.I,
                )
            )
            if name.startswith("on") or outside:
                del element.attrs[name]
            elif name == "style":
                element.attrs[name] = _EXTERNAL_STYLE.sub("none", value)
    _for_all(soup)
    for style in soup.select("style"):
        style.string = _EXTERNAL_STYLE.sub("none", style.string or "")
    return str(soup)


def _for_all(soup: BeautifulSoup) -> None:
    """What scrolls can be reached by keyboard, and a cell above row labels is no empty heading."""
    for number, output in enumerate(soup.select(".jp-OutputArea-output:has(table):not(:has(.mkx))"), start=1):
        output.attrs |= {"tabindex": "0", "role": "region", "aria-label": f"Table {number}"}
    for element in soup.select(".highlight pre, .jp-RenderedMarkdown pre, math[display=block]"):
        element["tabindex"] = "0"
    for heading in soup.select("thead th"):
        if not heading.get_text(strip=True):
            heading.name = "td"
            heading.attrs.pop("scope", None)


_EXTERNAL_STYLE = re.compile(r"""@import[^;]*;?|url\(\s*['"]?(?!data:|#)[^)]*\)""", re.I)


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
