"""Examples that people type first: every word of them is one that the catalogue sells or that its shoppers ask for."""

import re
from pathlib import Path

from makelib.data.sources.bazaar.world import generate
from makelib.search.explain import knows
from makelib.settings import Bazaar

ROOT = Path(__file__).parents[1]
#: what is searched for in a shell, on the explorer's page, by a retriever, or shown as words to write
EXAMPLE = re.compile(
    r"""(?:makelib search|explorer\.page\(|\.search\(|encode_queries\(\[|such as)\s*["“]([a-z ]*dress)["”]"""
)


def test_every_example_is_one_that_works_on_its_catalogue(tmp_path):
    catalog = generate(Bazaar(products=800, queries=600, clicks=8000), tmp_path / "bazaar")
    places = [ROOT / "README.md", *ROOT.glob("makelib/**/*.py")]
    said = [(file, word) for file in places for word in EXAMPLE.findall(file.read_text(encoding="utf-8"))]
    assert len(said) >= 3
    assert [
        (file.name, query, word) for file, query in said for word in query.split() if not knows(catalog, word)
    ] == []
