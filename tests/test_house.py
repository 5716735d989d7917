"""The house: its door opens quickly, its lower rooms need no notebook package, its plan is drawn as it is, no file is long."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import makelib

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
#: packages of the workbook by the names under which they are imported
WORKBOOK = ("IPython", "bs4", "ipywidgets", "jinja2", "jupyterlab", "latex2mathml", "matplotlib", "nbconvert", "papermill", "voila")  # fmt: skip


def python(*lines: str) -> str:
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_door_opens_quickly_and_pulls_in_nothing_heavy():
    seconds = "import time; start = time.perf_counter(); import makelib; print(time.perf_counter() - start)"
    assert min(float(python(seconds)) for _ in range(3)) < 0.2  # the least of three: a busy machine proves nothing
    heavy = "import sys, makelib; print({'torch', 'pandas', 'numpy', 'transformers', 'datasets'} & set(sys.modules))"
    assert python(heavy).strip() == "set()"


@pytest.mark.parametrize("name", makelib.__all__)
def test_a_name_of_the_door_is_what_it_says(name):
    assert name in dir(makelib)
    assert getattr(makelib, name).__name__ == name


def test_the_door_has_no_other_names():
    with pytest.raises(ImportError, match="Catalogue"):
        from makelib import Catalogue  # noqa: F401


def test_everything_below_the_workbook_works_without_its_packages():
    """Blocked like this the lower rooms, the command line and the door open; the workbook says what is missing."""
    printed = python(
        "import importlib, importlib.machinery, pkgutil",
        "finder = importlib.machinery.PathFinder",
        "find = finder.find_spec",
        "def without(name, path=None, target=None):",
        f"    return None if name.split('.')[0] in {WORKBOOK} else find(name, path, target)",
        "finder.find_spec = staticmethod(without)",
        "from makelib import Catalog, Experiment, MakeModel, ProductIndex, Retriever",
        "from makelib.runtime import UserError",
        "import makelib.__main__",
        "for room in ('data', 'model', 'search', 'study'):",
        "    package = importlib.import_module(f'makelib.{room}')",
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):",
        "        importlib.import_module(module.name)",
        "try:",
        "    from makelib import QueryExplorer",
        "except UserError as error:",
        "    print(error)",
    )
    assert "pip install 'makelib[workbook]'" in printed


def test_the_contract_forbids_the_packages_of_the_workbook():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert set(WORKBOOK) <= {name for contract in contracts for name in contract.get("forbidden_modules", [])}
    listed = {Requirement(text).name for text in EXTRAS["workbook"]}
    assert {"beautifulsoup4" if name == "bs4" else name for name in WORKBOOK} - {"IPython"} <= listed


def test_no_file_is_long_and_the_core_is_thin():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "makelib").rglob("*.py")}
    assert not {path.name: count for path, count in lines.items() if count > 500}
    assert sum(count for path, count in lines.items() if path.parts[-2] in ("model", "search")) <= 3000


def test_rooms_list_their_modules():
    for room in ("data", "model", "search", "study", "workbook"):
        package = ROOT / "makelib" / room
        said = (package / "__init__.py").read_text(encoding="utf-8")
        inside = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
        assert inside - {"__init__"} == {name for name in re.findall(r"`(\w+)`", said) if name in inside}, room
