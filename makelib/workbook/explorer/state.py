"""What the query explorer shows, as one value that can be saved and restored."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import dacite

from makelib.runtime import UserError
from makelib.workbook.explorer import html as draw

#: how many results the widget offers to show
SIZES = (6, 12, 24, 48)
#: how many it shows at most; a browser slows down long before a catalogue ends
MOST = 300
#: what is searched by, and how the widget says it
SEARCH_BY = {
    "query": "the query",
    "both": "query + product",
    "product": "the product",
    "image": "its image alone",
    "picture": "my picture",
}
#: what a new query leaves behind
ANEW = {"by": "query", "like": None, "picture": None, "selected": None, "title": None, "blank": False}


@dataclass(frozen=True)
class State:
    """Everything that decides what the explorer shows; small, and JSON when saved.

    Attributes:
        query: free text.
        variant, compare: the model searched with, and the one beside it (None: none).
        k: number of results. category: only this one (None: all).
        kind: exact search, or approximate through HNSW.
        by, like: search by the query, by the product `like` (an id), by its image alone, by query and product, or by
            `picture`.
        picture: somebody's own picture, small and redrawn, as a `data:` URI; see `explorer_html.own_picture`.
        selected: id of the product that is explained.
        title, blank: what if the selected product had this title (None: its own), or no image?
    """

    query: str = ""
    variant: str = ""
    compare: str | None = None
    k: int = 12
    category: str | None = None
    kind: Literal["exact", "approximate"] = "exact"
    by: Literal["query", "both", "product", "image", "picture"] = "query"
    like: str | None = None
    picture: str | None = None
    selected: str | None = None
    title: str | None = None
    blank: bool = False

    def __post_init__(self) -> None:
        if self.picture is not None:
            draw.decoded(self.picture)  # a state comes from a file, and a file from anybody

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str) -> State:
        """The inverse of `to_json`. Raises `UserError` for what is no saved state."""
        try:
            return dacite.from_dict(cls, json.loads(content), dacite.Config(strict=True))
        except (ValueError, TypeError, AttributeError, dacite.DaciteError) as error:
            raise UserError(f"This is not a saved state of the explorer: {str(error).splitlines()[0]}.") from None
