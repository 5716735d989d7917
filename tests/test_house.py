"""The house: its door opens quickly, its lower rooms need no notebook package, its plan is drawn as it is, no file is long."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import makelib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
#: packages of the workbook by the names under which they are imported
WORKBOOK = ("IPython", "bs4", "ipywidgets", "jinja2", "jupyterlab", "latex2mathml", "matplotlib", "nbconvert", "papermill", "plotly", "voila")  # fmt: skip

#: who may have a docstring, and what of a file is no code
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
UNSEEN = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
#: functions of more than 60 lines, and why they stay whole
LONG = {"_drawings": "one table: how each type of product is drawn, a line or two each"}


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
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    assert set(WORKBOOK) <= {name for contract in contracts for name in contract.get("forbidden_modules", [])}
    listed = {Requirement(text).name for text in EXTRAS["workbook"]}
    assert {"beautifulsoup4" if name == "bs4" else name for name in WORKBOOK} - {"IPython"} <= listed


def docstring(node: ast.AST) -> range:
    """The lines of a module's, class's or function's docstring; of anything else none."""
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        return range(node.body[0].lineno, node.body[0].end_lineno + 1)
    return range(0)


def code_lines(text: str) -> int:
    """How many lines hold code: not blank ones, not comments, not docstrings."""
    held = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in UNSEEN:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held.difference(*map(docstring, ast.walk(ast.parse(text)))))


def test_lines_of_code_are_counted():
    text = '"""A module.\n\nIt has two lines."""\n\n# why\nx = """text\n\nand more"""\ndef f():\n    """One."""\n    return x  # so\n'
    assert code_lines(text) == 5  # three of x, two of f


def test_no_file_is_long_and_the_core_is_thin():
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "makelib").rglob("*.py")}
    assert not {path.name: count for path, text in texts.items() if (count := text.count("\n")) > 500}
    # lines of code alone: a core that is explained well must not look thick, nor a bare one thin
    assert sum(code_lines(text) for path, text in texts.items() if path.parts[-2] in ("model", "search")) <= 2500


def test_no_function_is_long():
    """60 lines without its docstring: what is longer does two things, but for what is listed with its reason."""
    found = {}
    for path in (ROOT / "makelib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno + 1 - node.lineno - len(docstring(node))
                found |= {node.name: lines} if lines > 60 else {}
    assert found.keys() == LONG.keys()


def test_rooms_list_their_modules():
    for room in ("data", "model", "search", "study", "workbook"):
        package = ROOT / "makelib" / room
        said = (package / "__init__.py").read_text(encoding="utf-8")
        inside = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
        assert inside - {"__init__"} == {name for name in re.findall(r"`(\w+)`", said) if name in inside}, room


# -- what the documents say --------------------------------------------------------------------------------------------


def test_the_picture_of_the_plan_is_current():
    drawn = python("import runpy; print(runpy.run_path('docs/architecture.py')['draw'](), end='')")
    assert drawn == (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8"), "run python docs/architecture.py"


def definitions(path: Path) -> set[str]:
    """Functions and classes of a file, methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {node.name, *(f"{node.name}.{method.name}" for method in methods)}
    return found


def test_the_walk_through_the_house_names_what_exists():
    walk = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(makelib/[\w/]+\.py)`\s`([\w.]+)`", walk)
    assert len(named) == len(re.findall(r"makelib/[\w/]+\.py", walk)) > 15
    assert [(file, name) for file, name in named if name not in definitions(ROOT / file)] == []


@pytest.mark.parametrize("name", ["docs/method.md", "docs/architecture.md", "docs/catalogues.md", "docs/findings.md", "docs/scale.md", "CONTRIBUTING.md", "README.md"])  # fmt: skip
def test_documents_link_and_name_files_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    linked = {target.split("#")[0] for target in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", text)}
    assert [target for target in linked - {""} if not ((ROOT / name).parent / target).exists()] == []
    files = re.findall(r"`((?:makelib|tests|notebooks|docs)/[\w/]+\.\w+)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_method_page_names_every_planned_comparison_and_every_rule():
    from makelib.settings import FUSIONS
    from makelib.study.studies import PLANNED

    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert [pair for pair in PLANNED if "| `{}` | `{}` − `{}` |".format(*pair) not in page] == []
    assert [fusion for fusion in FUSIONS if f"`{fusion}`" not in page] == []


def test_a_reader_can_type_the_first_command_and_cite_the_paper():
    assert "<this repository>" not in (ROOT / "README.md").read_text(encoding="utf-8")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    assert cited["authors"]
    assert all(person.keys() == {"family-names", "given-names"} for person in cited["authors"])


def test_nobody_cites_a_page_that_is_not_here():
    listed = subprocess.run(["git", "grep", "-lw", "METHOD", "--", "makelib", "docs", "notebooks"], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert listed.stdout == ""


def test_make_check_asks_the_contracts_and_the_types():
    made = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"lint-imports", "mypy"} <= {word.rsplit("/", 1)[-1] for word in made.split()}
    assert PROJECT["tool"]["mypy"]["disallow_untyped_defs"]
