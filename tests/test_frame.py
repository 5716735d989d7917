"""What stands around the library: the ways to install it agree, the documents name what exists, notebooks are clean."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import papermill
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TARGETS = ("lab", "reproduce", "explore", "test", "bench", "check", "help")


def requirements() -> list[Requirement]:
    lists = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    found = [Requirement(text) for group in lists for text in group]
    return [requirement for requirement in found if requirement.name != "makelib"]  # extras that hold extras


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- installing -------------------------------------------------------------------------------------------------------


def test_conda_environment_says_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, nested = environment["dependencies"]
    assert environment["name"] == PROJECT["project"]["name"]
    assert conda == [f"python{PROJECT['project']['requires-python']}", "pip"]
    assert nested == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    assert "dev" in PROJECT["project"]["optional-dependencies"]


def test_constraints_are_plain_pins():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in pins if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in pins)  # no +cpu, no file:, no -e
    assert "makelib" not in map(plain, constraints())


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_within_its_range(requirement):
    pins = {plain(name): version for name, version in constraints().items()}
    if requirement.name in ("jieba", "pymilvus") and plain(requirement.name) not in pins:
        pytest.skip("an extra that the tests do not install")
    assert requirement.specifier.contains(pins[plain(requirement.name)])


def test_templates_and_styles_are_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["makelib"]
    covered = {file for pattern in patterns for file in (ROOT / "makelib").glob(pattern)}
    files = {file for file in (ROOT / "makelib").rglob("*") if file.suffix in (".j2", ".css", ".json", ".yaml", ".csv")}
    assert files <= covered


# -- commands ---------------------------------------------------------------------------------------------------------


def dry_run(*words: str) -> str:
    made = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_the_target_and_helps_with_it(target):
    dry_run(target)
    assert target == "help" or f"make {target} " in dry_run("help")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ((), '--preset "quick" --catalog "bazaar" --seeds "0" --out "reports/quick"'),
        (("PRESET=smoke", "SEEDS=2"), '--preset "smoke" --catalog "bazaar" --seeds "2" --out "reports/smoke"'),
        (("CATALOG=/a/shoes/",), '--catalog "/a/shoes/" --seeds "0" --out "reports/quick-shoes"'),
        (("CATALOG=hub:fashion",), '--catalog "hub:fashion" --seeds "0" --out "reports/quick-fashion"'),
        (("CATALOG=shoes", "OUT=reports/mine"), '--out "reports/mine"'),
        (("CLUSTER=tcp://here:8786",), '--out "reports/quick" --cluster "tcp://here:8786"'),
    ],
)
def test_make_reproduce_hands_its_variables_on(variables, words):
    assert words in dry_run("reproduce", *variables)


def test_install_is_not_repeated_for_the_same_lock(tmp_path):
    """The stamp carries the checksum of both files: made, nothing is installed; one byte changed, it is."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())

    def installs() -> bool:
        made = subprocess.run(["make", "-n", "test"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        return "pip install" in made

    assert installs()
    (tmp_path / ".venv").mkdir()
    made = subprocess.run(["make", "-n", "test"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / re.search(r"touch (\S+)", made)[1]).touch()
    assert not installs()
    (tmp_path / "pyproject.toml").touch()
    assert not installs()
    with (tmp_path / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert installs()


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert {"make check", "make test"} <= set(script.read_text(encoding="utf-8").splitlines())


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="no README yet")
def test_readme_names_commands_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("make lab", "make reproduce", "make test"):
        assert command in readme
    named = set(re.findall(r"\bmake ([a-z]+)\b", " ".join(re.findall(r"`[^`]+`|```.*?```", readme, re.S))))
    assert named <= set(TARGETS)


# -- notebooks --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_committed_without_outputs_and_names_no_machine(self, path):
        content = json.loads(path.read_text(encoding="utf-8"))
        for cell in content["cells"]:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None
        kernel = content["metadata"]["kernelspec"]
        assert (kernel["name"], kernel.get("language", "python")) == ("python3", "python")
        assert "papermill" not in content["metadata"]

    def test_cells_have_ids_that_stay(self, path):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert len({cell["id"] for cell in cells}) == len(cells)

    def test_can_be_run_by_the_report_runner(self, path):
        from makelib.workbook.reports import run as reports

        reports._check_parameters(path)
        assert papermill.inspect_notebook(str(path))["preset"]["default"].strip("'\"") in ("smoke", "quick", "full")

    def test_starts_with_a_title(self, path):
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
        assert first["cell_type"] == "markdown"
        assert "".join(first["source"]).startswith("# ")

    def test_says_before_its_first_code_that_it_may_train(self, path):
        """Chapters that open a model of an earlier one, and train it where nobody has."""
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        if path.stem[:2] in ("05", "06"):
            assert any("experiment.retriever(" in source or "QueryExplorer(" in source for source in sources)
            code = next(i for i, cell in enumerate(cells) if cell["cell_type"] == "code")
            assert re.search(r"trained\s+here first: about a minute", " ".join(sources[:code]))


@pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks yet")
def test_notebooks_are_numbered_and_their_needs_run_before_them():
    from makelib.workbook.reports import run as reports

    names = [notebook.name for notebook in reports._plan(ROOT / "notebooks")]
    assert [name[:2] for name in names] == [f"{number:02}" for number in range(1, len(names) + 1)]
    assert len(names) == len(NOTEBOOKS)


def test_nothing_in_the_repository_names_the_machine_it_was_written_on():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and Path(name).suffix in (
            ".py",
            ".md",
            ".ipynb",
            ".yml",
            ".toml",
            ".txt",
            ".j2",
            ".css",
        ):
            text = (ROOT / name).read_text(encoding="utf-8")
            assert str(ROOT) not in text, name
            assert not re.search(r"/(home|Users|root)/\w+/", text), name


def test_the_command_is_installed_under_its_name():
    assert PROJECT["project"]["scripts"] == {"makelib": "makelib.__main__:main"}
    shown = subprocess.run([sys.executable, "-m", "makelib", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0
