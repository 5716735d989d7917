"""Fixtures that several test files share."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from makelib.data import text
from makelib.data.tables import write_catalog

pytest.register_assert_rewrite("explore")  # what the browser tests share


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def newcomer(tmp_path_factory):
    """The repository as `git clone` leaves it, once its packages are installed: no data, no run. Whoever trains the default
    models in it trains them for all tests."""
    clone = tmp_path_factory.mktemp("clone") / "makelib"
    tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(tracked, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if (ROOT / name).is_file() and not name.startswith(".venv"):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    (clone / ".venv").mkdir()
    for part in (ROOT / ".venv").iterdir():
        if not part.name.startswith(".installed"):
            (clone / ".venv" / part.name).symlink_to(part)
    stamp = subprocess.run(
        "cat pyproject.toml constraints.txt | cksum", shell=True, cwd=clone, capture_output=True, text=True
    )
    (clone / ".venv" / f".installed-{stamp.stdout.split()[0]}").touch()
    return clone


@pytest.fixture(params=["jieba", "pairs"])
def segmenter(request, monkeypatch):
    """With jieba and as if it were not installed."""
    if request.param == "pairs":
        monkeypatch.setitem(sys.modules, "jieba", None)
    else:
        pytest.importorskip("jieba")
    text._segmenter.cache_clear()
    yield request.param
    text._segmenter.cache_clear()


@pytest.fixture(scope="session")
def tiny_catalog(tmp_path_factory):
    """Five products without images and six queries: small enough to work out every number by hand.

    | row | product | category | colour | material | training clicks | stuffed words |
    | --- | --- | --- | --- | --- | --- | --- |
    | 0 | p0 | dress | red | | 3 | 0 |
    | 1 | p1 | dress | blue | | 1 | 0 |
    | 2 | p2 | pot | red | iron | 1 | 2 |
    | 3 | p3 | pot | blue | iron | 1 | 4 |
    | 4 | p4 | pot | blue | steel | 0 (cold) | 4 |

    Training queries 0 `red thing`, 1 `blue thing`; test queries 2 `red dress`, 3 `blue iron pot`, 4 `pot`, and 5 `Red
    Thing`, which has neither constraints nor clicks.
    """
    rows = [
        ("p0", "Acme dress", "dress", {"type": "dress", "colour": "red"}),
        ("p1", "Acme dress summer", "dress", {"type": "dress", "colour": "blue"}),
        ("p2", "iron pot", "pot", {"type": "pot", "colour": "red", "material": "iron"}),
        ("p3", "", "pot", {"type": "pot", "colour": "blue", "material": "iron"}),
        ("p4", "steel pot pot sale", "pot", {"type": "pot", "colour": "blue", "material": "steel"}),
    ]
    products = pd.DataFrame(rows, columns=["product_id", "title", "category", "attributes"])
    queries = pd.DataFrame(
        [
            ("r0", "red thing", "train", {"colour": "red"}),
            ("r1", "blue thing", "train", {"colour": "blue"}),
            ("t0", "red dress", "test", {"type": "dress", "colour": "red"}),
            ("t1", "blue iron pot", "test", {"type": "pot", "colour": "blue", "material": "iron"}),
            ("t2", "pot", "test", {"type": "pot"}),
            ("t3", "Red  Thing", "test", None),
        ],
        columns=["query_id", "query", "split", "constraints"],
    )
    clicks = ["r0 p0", "r0 p0", "r0 p0", "r0 p2", "r1 p1", "r1 p3", "t0 p0", "t1 p3", "t1 p4"]
    interactions = pd.DataFrame([click.split() for click in clicks], columns=["query_id", "product_id"])
    return write_catalog(
        tmp_path_factory.mktemp("tiny") / "catalogue",
        name="tiny",
        products=products,
        queries=queries,
        interactions=interactions.assign(label=1.0, kind="click"),
        truth=pd.DataFrame({"stuffed_words": [0, 0, 2, 4, 4]}),
        info={
            "led": {"dress": "image", "pot": "title"},
            "attribute_kinds": {"type": "type", "colour": "visual", "material": "textual"},
            "generated_queries": True,
        },
    )
