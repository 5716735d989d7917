"""Examples that people type first, wherever they stand, find what they ask for: each is searched for, and its first products are judged."""

import argparse
import json
import re
from pathlib import Path

import pytest

from makelib.__main__ import parser
from makelib.data.sources.bazaar.words import vocabulary
from makelib.data.sources.bazaar.world import generate
from makelib.search.explain import knows
from makelib.settings import Bazaar
from makelib.study.experiment import Experiment

ROOT = Path(__file__).parents[1]
#: what is searched for in a shell, on the explorer's page, by a retriever, or shown as words to write
EXAMPLE = re.compile(
    r"""(?:makelib\ search\ |\.search\(|\.page\(|\.show\(query=|encode_queries\(\[|\banswer\(|such\ as\ )["“]([a-z\ ]+)["”]
        | \btype\ `([a-z\ ]+)`""",
    re.VERBOSE,
)


def helps(commands: argparse.ArgumentParser, name: str = "makelib"):
    """What `--help` says, of every command."""
    yield name, commands.format_help()
    for action in commands._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, sub in action.choices.items():
                yield from helps(sub, f"{name} {word}")


def examples() -> dict[str, set[str]]:
    """Query -> the places where it is an example: README, docs, modules, cells of notebooks, `--help`."""
    prose = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("makelib/**/*.py")]
    said = [(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")) for file in prose]
    for file in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        said.append((file.name, "\n".join("".join(cell["source"]) for cell in cells)))
    found: dict[str, set[str]] = {}
    for place, text in [*said, *helps(parser())]:
        for shell, page in EXAMPLE.findall(text):
            found.setdefault(shell or page, set()).add(place)
    return found


def wishes(query: str) -> dict[str, str]:
    """What the words of a query ask for in the generated world, attribute -> value; "cheap" asks for nothing."""
    means = {
        word: (key, value) for key, values in vocabulary("en").items() for value in values for word in values[value]
    }
    return {key: value for key, value in map(means.get, query.split()) if key != "filler"}


def test_examples_stand_where_people_look_first():
    places = set().union(*examples().values())
    assert {"README.md", "makelib search", "makelib/__main__.py", "06_index_and_scale.ipynb"} <= places


def test_every_word_of_an_example_is_one_that_shoppers_use(tmp_path):
    catalog = generate(Bazaar(products=800, queries=600, clicks=8000), tmp_path / "bazaar")
    assert [(query, word) for query in examples() for word in query.split() if not knows(catalog, word)] == []


@pytest.mark.notebooks
@pytest.mark.timeout(900)
def test_the_first_products_of_every_example_are_what_it_asks_for(newcomer, monkeypatch):
    """On the catalogue and by the model of the default preset, which the examples are written for. The first product is
    all that was asked for, and so are four of the first five."""
    monkeypatch.chdir(newcomer)
    retriever = Experiment.open("", "quick").retriever("full")
    sold = retriever.catalog.attributes.assign(category=retriever.catalog.products["category"].to_numpy())
    for query, places in ((query, places) for query, places in examples().items() if wishes(query)):
        first = sold.iloc[retriever.search(query, 5)["row"]]
        met = (first[list(wishes(query))] == list(wishes(query).values())).all(axis=1).tolist()
        assert sum(met) >= 4, f"{query!r} of {sorted(places)} finds\n{first}"
        assert met[0], f"{query!r} of {sorted(places)} finds\n{first}"
