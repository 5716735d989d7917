"""Kernels of visitors where nobody forks them, and mistakes in the page's notebook; forks themselves: tests/browser."""

from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from makelib.workbook import visitors

TEMPLATES = Path(visitors.__file__).parent / "templates"


def test_a_stand_in_that_finds_nobody_becomes_a_kernel(monkeypatch):
    monkeypatch.delenv(visitors.ADDRESS, raising=False)
    specs = KernelSpecManager(kernel_dirs=[str(TEMPLATES / "kernels")])
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
    assert "stand_in.py" in " ".join(manager.kernel_spec.argv)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        said = []
        client.execute_interactive(
            "print(6 * 7)", timeout=60, output_hook=lambda it: said.append(it["content"].get("text"))
        )
        assert "42\n" in said
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_mistake_in_the_parameters_is_one_line_before_any_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = 'run, preset, catalog, seeds, overrides = "", "quikc", "bazaar", 0, {}'
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.ipynb")
    assert visitors.main([str(tmp_path / "page.ipynb")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("makelib: Unknown preset 'quikc'. Choose one of: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "page.ipynb"]
