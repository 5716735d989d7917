"""Two reports of the same run, begun at the same moment on a folder that nobody has imported: one works, the other waits and says so."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_any_catalogue import CASES, TINY, folder_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(900)]

CELLS = """
from makelib import Experiment
experiment = Experiment.open(run, preset, catalog, seeds, overrides)
experiment.train([experiment.arm("make", "title", 0)])
"""


def test_two_reports_of_one_run(tmp_path):
    folder_of(tmp_path / "my [shop] #1", *CASES["three queries"])
    (tmp_path / "notebooks").mkdir()
    book = nbformat.read(ROOT / "notebooks" / "01_data_preparation.ipynb", as_version=4)
    parameters = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ()))
    book.cells = [nbformat.v4.new_markdown_cell("# Training"), parameters, nbformat.v4.new_code_cell(CELLS)]
    nbformat.write(book, tmp_path / "notebooks" / "01_training.ipynb")
    program = (
        "import pathlib, sys; from makelib.workbook.reports.run import reproduce\n"
        f"sys.exit(reproduce('smoke', 'my [shop] #1', 1, 'run', {TINY!r}, notebooks=pathlib.Path('notebooks')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MAKELIB_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]  # fmt: skip
    told = [one.communicate(timeout=600) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    waited = [re.findall(r"Another process is making (.+); waiting for it", errors) for _, errors in told]
    assert sum("run/index.html" in names for names in waited) == 1, told
    assert len(list((tmp_path / "data").glob("my [[]shop] #1-*"))) == 1  # imported once
    assert [
        notebook["status"] for notebook in json.loads((tmp_path / "run" / "summary.json").read_text())["notebooks"]
    ] == ["ok"]
    assert (tmp_path / "run" / "index.html").is_file()
    assert not [path for path in tmp_path.rglob(".*-*-*") if path.is_dir()]  # nothing half-made is left
