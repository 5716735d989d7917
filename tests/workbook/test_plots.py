"""Figures draw untrusted text of any script: what no font here has is counted, and a price is no formula."""

import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from makelib.workbook import notebook, plots


@pytest.fixture(autouse=True)
def poor_machine(monkeypatch):
    """A machine with matplotlib's own font only, and every warning an error."""
    monkeypatch.setattr(plots, "FONTS", ())
    for cached in (plots._families, plots._glyphs):
        cached.cache_clear()
    with plt.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.use_style()
        yield
    plt.close("all")
    for cached in (plots._families, plots._glyphs):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("red dress", "red dress"),
        ("红色 dress", "[Cjk ×2] dress"),
        ("ドレス", "[Katakana ×3]"),
        ("été ₽ فستان", "été ₽ فستان"),
        ("👗 new", "  new"),
        ("$5 off $10", r"\$5 off \$10"),
        ("", ""),
    ],
)
def test_drawable(text, shown):
    assert plots.drawable(text) == shown


def test_installed_fonts_draw_what_the_own_one_cannot(monkeypatch):
    monkeypatch.setattr(plots, "FONTS", ("DejaVu Serif", "no such font"))
    plots._families.cache_clear()
    assert plots._families() == ["DejaVu Sans", "DejaVu Serif"]


TEXTS = ["红色连衣裙 $5 off $10", "$x^{2$ \\frac", "فستان أحمر", "हिन्दी 👗"]


def test_figures_with_untrusted_text_draw_without_a_warning():
    searches = {text: pd.DataFrame({"row": [0, 1]}) for text in TEXTS}
    plots.hits(searches, np.zeros((2, 8, 8, 3), np.uint8), np.array([True, False])).canvas.draw()
    plots.counts(dict.fromkeys(TEXTS, 0.5), "t", "x").figure.canvas.draw()
    weights = pd.DataFrame({"category": TEXTS * 3, "weight_image": 0.5, "has_title": True, "has_image": True})
    plots.weights_by_category(weights).figure.canvas.draw()


def test_labels_that_look_alike_stay_apart():
    ax = plots.counts({"颜色": 0.3, "品牌": 0.5}, "t", "x")
    assert [patch.get_width() for patch in ax.patches] == [0.5, 0.3]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["[Cjk ×2]", "[Cjk ×2]"]


def test_tables_and_figures_are_kept_under_their_caption(tmp_path):
    experiment = SimpleNamespace(run=tmp_path)
    table = pd.DataFrame({"Rel@10": [0.123456789]}, index=pd.Index(["<b>"], name="variant"))
    shown = table.style.format("{:.1f}")
    assert notebook.kept(experiment, "3 a, table", shown) is shown
    read = pd.read_csv(tmp_path / "tables" / "3 a, table.csv", index_col="variant")
    pd.testing.assert_frame_equal(read, table)  # whole numbers, not those that are shown
    notebook.kept(experiment, "plain", table.reset_index(drop=True))
    assert (tmp_path / "tables" / "plain.csv").read_text().splitlines()[0] == "Rel@10"
    plots.calibration(
        pd.DataFrame({"promised": [0.1, 0.5], "observed": [0.2, 0.4], "hits": 5, "variant": "$a$"}),
        "promised and observed",
    )
    notebook.keep(experiment, "for the folder", front=False)
    notebook.keep(experiment, "for all")
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        "for the folder.svg",
        "for all.png",
        "for all.svg",
    }
