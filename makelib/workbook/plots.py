"""Every figure, each a function from a table to an `Axes`. No computation that a number in a report depends on."""

from __future__ import annotations

import functools
import itertools
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

#: one colour per variant, the same in every figure (Okabe and Ito's palette, readable without colour vision)
COLOURS = {
    "title": "#999999", "image": "#56B4E9", "mean": "#E69F00", "global": "#CC79A7", "joint": "#F0E442", "gate": "#009E73",
    "adaptive": "#0072B2", "none": "#0072B2", "enrichment": "#E69F00", "false_negatives": "#009E73", "both": "#D55E00",
    "full": "#D55E00", "title_keywords": "#888844", "oracle": "#000000", "unique_queries": "#CC79A7", "tfidf": "#56B4E9", "bm25": "#555555",
    "behaviour": "#BBBBBB", "category": "#117733", "late_fusion": "#44AA99", "reader": "#882255", "ideal_reader": "#332288",
    "single_stream": "#AA4499", "albef": "#DDCC77",
}  # fmt: skip
#: families that draw what matplotlib's own font cannot: Chinese, Japanese, Korean, Indian scripts, Thai, emoji
FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC",
    "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Droid Sans Fallback", "Arial Unicode MS", "Noto Sans Devanagari",
    "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Noto Emoji",
)  # fmt: skip
#: twelve colours for categories, told apart on white and on black; a further category begins again
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#FF8AAE", "#8C6BB1", "#7F9F2F", "#B15928", "#17A2A2", "#C2185B", "#5C7CFA",
)  # fmt: skip
LED = {"image": "#0072B2", "title": "#E69F00", "all": "#444444"}


def use_style() -> None:
    """One look for all figures; sizes set once."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.2, 3.6), "figure.dpi": 110, "savefig.dpi": 150, "figure.constrained_layout.use": True,
            "figure.facecolor": "white", "axes.facecolor": "white",
            "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
            "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
            "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.8,
            "font.family": _families(),
        }
    )  # fmt: skip


@functools.cache
def _families() -> list[str]:
    """matplotlib's own font, then those of `FONTS` that this machine has; each draws what those before it cannot."""
    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in FONTS if name in there)]


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters that `_families` can draw."""
    files = map(font_manager.findfont, _families())
    return frozenset().union(*(font_manager.get_font(file).get_charmap() for file in files))


def drawable(text: object) -> str:
    """Untrusted text for a figure: `$` begins no formula, and letters that no font here has are counted, as in `[Cjk ×3]`."""
    drawn = ""
    for there, run in itertools.groupby(str(text), lambda character: ord(character) in _glyphs()):
        characters = "".join(run)
        letters = [character for character in characters if character.isalpha()]
        script = unicodedata.name(letters[0], "other").split()[0].capitalize() if letters else ""
        drawn += characters if there else f"[{script} ×{len(letters)}]" if letters else " "
    return drawn.replace("$", r"\$")


def _axes(ax: Axes | None, **size: Any) -> Axes:
    return ax if ax is not None else plt.subplots(**size)[1]


def _legend(ax: Axes, **options: Any) -> None:
    """A legend, where there is something to name: small catalogues leave figures empty."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(**options)


def hits(
    searches: Mapping[str, pd.DataFrame],
    images: np.ndarray,
    has_image: np.ndarray,
    title: str = "",
    marks: Mapping[tuple[str, int], bool] | None = None,
) -> Figure:
    """One row of images per search (name to table of hits), best first; `marks` maps (name, row) to a bool: green or red frame."""
    columns = max(len(table) for table in searches.values())
    figure, grid = plt.subplots(len(searches), columns, figsize=(columns * 1.1, len(searches) * 1.35), squeeze=False)
    for line, (name, table) in zip(grid, searches.items(), strict=True):
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        for ax, row in zip(line, table["row"], strict=False):
            ax.imshow(images[row] if has_image[row] else np.full_like(images[row], 235), interpolation="nearest")
            if marks is not None:
                ax.spines[:].set(visible=True, color="#009E73" if marks[name, row] else "#D55E00", linewidth=2.5)
        line[0].set_ylabel(_wrapped(name, 14), rotation=0, ha="right", va="center", fontsize=9)
    if title:
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    return figure


def counts(
    values: Mapping[str, float] | pd.Series, title: str, xlabel: str, ax: Axes | None = None, percent: bool = False
) -> Axes:
    """Horizontal bars, name to number."""
    values = pd.Series(values)
    ax = _axes(ax, figsize=(7.2, 0.9 + 0.28 * len(values)))
    ax.barh(range(len(values)), values.to_numpy()[::-1], color="#0072B2")
    ax.set_yticks(range(len(values)), [drawable(name) for name in values.index[::-1]])
    ax.set(title=title, xlabel=xlabel)
    if percent:
        ax.xaxis.set_major_formatter(PercentFormatter(1))
    return ax


def histogram(
    values: np.ndarray, title: str, xlabel: str, ylabel: str = "count", ax: Axes | None = None, **options: Any
) -> Axes:
    """How often each value occurs, with the median marked."""
    ax = _axes(ax)
    values = np.asarray(values, dtype=float)
    ax.hist(values, color="#56B4E9", edgecolor="white", **{"bins": 30, **options})
    if len(values):
        ax.axvline(np.median(values), color="#D55E00", linestyle="--", label=f"median {np.median(values):.3g}")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    _legend(ax)
    return ax


def popularity(clicks: Mapping[str, np.ndarray], title: str = "Popularity is Zipfian", ax: Axes | None = None) -> Axes:
    """Clicks by rank, both axes logarithmic; name to counts."""
    ax = _axes(ax)
    for name, values in clicks.items():
        values = np.sort(values[values > 0])[::-1]
        ax.loglog(np.arange(1, len(values) + 1), values, label=name)
    ax.set(title=title, xlabel="rank", ylabel="training clicks")
    _legend(ax)
    return ax


def masks(masks: Any, title: str, ax: Axes | None = None) -> Axes:
    """Which product (column) is what to which query (row) of a batch: right, left out, or wrong."""
    ax = _axes(ax, figsize=(4.2, 3.8))
    kinds = np.where(masks.positives, 0, np.where(masks.negatives, 2, 1))
    colours = mpl.colors.ListedColormap(["#0072B2", "#ffffff", "#ececec"])
    ax.imshow(kinds, cmap=colours, vmin=0, vmax=2, interpolation="nearest")
    names = ("right answer", "left out", "wrong answer")
    ax.legend(
        handles=[mpl.patches.Patch(facecolor=colours(i), edgecolor="#999999", label=name) for i, name in enumerate(names)],
        loc="center left", bbox_to_anchor=(1, 0.5),
    )  # fmt: skip
    ax.set(title=title, xlabel="product", ylabel="query")
    ax.grid(False)
    return ax


def reliabilities(
    truth: pd.DataFrame, title: str = "What can be trusted differs by product", ax: Axes | None = None
) -> Axes:
    """True reliability of image and title of every product that has both, coloured by who leads the category."""
    ax = _axes(ax, figsize=(5.2, 4))
    shown = truth[(truth["image_kind"] != "missing") & (truth["title_kind"] != "missing")]
    random = np.random.default_rng(0)
    for led, group in shown.groupby("led"):
        x, y = (group[f"{side}_reliability"] + random.normal(0, 0.012, len(group)) for side in ("title", "image"))
        ax.scatter(x, y, s=5, alpha=0.35, color=LED[led], label=f"{led}-led category", linewidths=0)
    ax.set(title=title, xlabel="true reliability of the title", ylabel="true reliability of the image")
    _legend(ax, markerscale=4)
    return ax


def curves(
    table: pd.DataFrame,
    column: str,
    title: str,
    by: str | None = None,
    smooth: int = 9,
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A column of the training curves against the step; with `by`, one line per value of that column (mean over seeds)."""
    ax = _axes(ax)
    table = table[table["stage"] == table["stage"].iloc[0]].dropna(subset=[column])
    for name, group in table.groupby(by, sort=False) if by else [(column, table)]:
        line = group.groupby("step")[column].mean()
        few = len(line) <= 12
        shown = line if few else line.rolling(smooth, min_periods=1, center=True).mean()
        ax.plot(shown.index, shown, marker="o" if few else None, label=str(name), color=COLOURS.get(str(name)))
    ax.set(title=title, xlabel="step", ylabel=ylabel or column)
    if by:
        _legend(ax, ncols=2)
    return ax


def losses(
    table: pd.DataFrame,
    names: Sequence[str],
    title: str = "Training objectives",
    ax: Axes | None = None,
    prior: float | None = None,
) -> Axes:
    """The named objectives (not weighted) against the step; `prior` marks the loss of a model that has learned nothing."""
    ax = _axes(ax)
    table = table[(table["stage"] == "pretrain") & (table["step"] > 0)]
    for name in names:
        if name in table and table[name].notna().any():
            ax.plot(
                table["step"], table[name].rolling(9, min_periods=1, center=True).mean(), label=name.replace("_", " ")
            )
    if prior is not None:
        ax.axhline(prior, color="#999999", linestyle=":", label="learned nothing")
    ax.set(title=title, xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    _legend(ax, ncols=2)
    return ax


def forest(
    rows: Sequence[dict[str, Any]], metric: str, title: str, segment: str = "all", ax: Axes | None = None
) -> Axes:
    """One line per variant: mean over seeds (dot), 95 % interval (bar), each seed (small tick); higher is better."""
    table = {row["variant"]: row for row in rows if row["metric"] == metric and row["segment"] == segment}
    ax = _axes(ax, figsize=(7.2, 1.0 + 0.36 * len(table)))
    for place, (variant, row) in enumerate(reversed(table.items())):
        colour = COLOURS.get(variant, "#444444")
        lo, hi = row["interval"]
        ax.plot([lo, hi], [place, place], color=colour, linewidth=3, solid_capstyle="round")
        ax.plot(row["per_seed"], [place] * len(row["per_seed"]), "|", color="black", markersize=8, alpha=0.6)
        ax.plot(row["mean"], place, "o", color=colour, markersize=8, markeredgecolor="white")
        ax.annotate(
            f"{100 * row['mean']:.1f}", (hi, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    ax.set_yticks(range(len(table)), [name.replace("_", " ") for name in reversed(table)])
    ax.set(title=title, xlabel=f"{metric} on unseen queries")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.margins(x=0.12)
    return ax


def differences(
    rows: Sequence[dict[str, Any]],
    metric: str,
    title: str,
    segment: str = "all",
    ax: Axes | None = None,
    paper: float | None = None,
) -> Axes:
    """Paired differences in points with their 95 % intervals; filled where the adjusted or raw p is below .05, hollow where not."""
    chosen = [row for row in rows if row["metric"] == metric and row["segment"] == segment and row.get("reference")]
    ax = _axes(ax, figsize=(7.2, 1.1 + 0.36 * len(chosen)))
    for place, row in enumerate(reversed(chosen)):
        p = row.get("p_value_holm") if row.get("p_value_holm") is not None else row["p_value"]
        colour = COLOURS.get(row["variant"], "#444444")
        lo, hi = (100 * value for value in row["difference_interval"])
        ax.plot([lo, hi], [place, place], color=colour, linewidth=3, solid_capstyle="round")
        ax.plot(
            100 * row["difference"],
            place,
            "o",
            markersize=8,
            color=colour,
            markerfacecolor=colour if p < 0.05 else "white",
        )
        ax.annotate(
            f"{100 * row['difference']:+.1f}   p {_p(p)}", (hi, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8.5
        )  # fmt: skip
    ax.axvline(0, color="#444444", linewidth=1)
    if paper is not None:
        ax.axvline(
            100 * paper,
            color="#D55E00",
            linestyle=":",
            linewidth=1.4,
            label=f"paper's figure, other data (+{100 * paper:.2f})",
        )
        ax.set_ylim(-1.8, len(chosen) - 0.4)
        _legend(ax, loc="lower right", fontsize=8)
    ax.set_yticks(
        range(len(chosen)), [f"{r['variant']} − {r['reference']}".replace("_", " ") for r in reversed(chosen)]
    )
    ax.set(title=title, xlabel=f"difference in {metric}, points")
    ax.margins(x=0.3)
    return ax


def segment_differences(
    rows: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
    metric: str,
    title: str,
    segments: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The paired difference per segment of queries, one colour per (variant, reference) pair, with intervals and query counts."""
    chosen = [r for r in rows if r["metric"] == metric and (r["variant"], r.get("reference")) in set(pairs)]
    names = [n for n in dict.fromkeys(r["segment"] for r in chosen) if segments is None or n in segments]
    ax = _axes(ax, figsize=(7.2, 1.2 + 0.34 * len(names) * max(1, len(pairs) * 0.6)))
    for offset, (variant, reference) in enumerate(pairs):
        table = {r["segment"]: r for r in chosen if (r["variant"], r["reference"]) == (variant, reference)}
        shift = (offset - (len(pairs) - 1) / 2) * 0.22
        label = f"{variant} − {reference}".replace("_", " ")
        for place, name in enumerate(reversed(names)):
            if name in table and np.isfinite(table[name]["difference"]):
                row, colour = table[name], COLOURS.get(variant, "#444444") if len(pairs) == 1 else f"C{offset}"
                ax.plot([100 * x for x in row["difference_interval"]], [place - shift] * 2, color=colour, linewidth=2.4)
                ax.plot(100 * row["difference"], place - shift, "o", color=colour, markersize=5.5, label=label)
                label = None
    sizes = {r["segment"]: r.get("queries", 0) for r in chosen}
    ax.axvline(0, color="#444444", linewidth=1)
    ax.set_yticks(range(len(names)), [f"{drawable(name)} ({sizes[name]})" for name in reversed(names)])
    ax.set(title=title, xlabel=f"difference in {metric}, points (queries in brackets)")
    if len(pairs) > 1:
        _legend(ax, fontsize=8)
    return ax


def weights_by_category(weights: pd.DataFrame, title: str = "Image weight by category", ax: Axes | None = None) -> Axes:
    """Distribution of the image's weight over the products of each category that have both title and image."""
    both = weights[weights["has_title"] & weights["has_image"]].dropna(subset=["weight_image"])
    common = both["category"].value_counts().head(16).index
    both = both[both["category"].isin(common)]
    order = both.groupby("category")["weight_image"].median().sort_values().index
    ax = _axes(ax, figsize=(7.2, 1.0 + 0.32 * len(order)))
    if both.empty:
        ax.set(title="No product has both title and image")
        return ax
    parts = ax.boxplot(
        [both.loc[both["category"] == name, "weight_image"] for name in order], orientation="horizontal", widths=0.6,
        patch_artist=True, showfliers=False, medianprops={"color": "black"},
    )  # fmt: skip
    led = both.groupby("category")["led"].first() if "led" in both else pd.Series("all", index=order)
    for box, name in zip(parts["boxes"], order, strict=True):
        box.set(facecolor=LED[led[name]], alpha=0.75)
    ax.set_yticks(range(1, len(order) + 1), [drawable(name) for name in order])
    ax.set(title=title, xlabel="weight of the image (1 − weight of the title)", xlim=(0, 1))
    if "led" in both:
        ax.legend(
            handles=[
                mpl.patches.Patch(color=LED[k], alpha=0.75, label=f"{k}-led category") for k in ("image", "title")
            ],
            loc="lower right",
        )
    return ax


def weights_by_reliability(weights: pd.DataFrame, title: str, bins: int = 6, ax: Axes | None = None) -> Axes:
    """Mean image weight, relative to the category's own mean, against the true advantage of the image, in bins of equal size."""
    both = weights[weights["has_title"] & weights["has_image"]].copy()
    both["advantage"] = both["image_reliability"] - both["title_reliability"]
    both["centred"] = both["weight_image"] - both.groupby("category")["weight_image"].transform("mean")
    ax = _axes(ax)
    for led, group in both.groupby("led"):
        cut = pd.qcut(group["advantage"].rank(method="first"), bins, labels=False)
        means = group.groupby(cut).agg(x=("advantage", "mean"), y=("centred", "mean"), s=("centred", "sem"))
        ax.errorbar(
            means["x"], means["y"], yerr=1.96 * means["s"], marker="o", color=LED[led], label=f"{led}-led", capsize=2
        )
    ax.axhline(0, color="#444444", linewidth=1)
    ax.set(
        title=title,
        xlabel="true reliability of the image minus that of the title",
        ylabel="image weight − category mean",
    )
    _legend(ax)
    return ax


def response(table: pd.DataFrame, x: str, title: str, xlabel: str, by: str = "led", ax: Axes | None = None) -> Axes:
    """Mean image weight with a 95 % band as something is changed step by step, one line per value of `by`."""
    ax = _axes(ax)
    for number, (name, group) in enumerate(table.groupby(by)):
        means = group.groupby(x)["weight_image"].agg(["mean", "sem"])
        colour = LED.get(name, f"C{number}")
        ax.plot(
            means.index,
            means["mean"],
            marker="o",
            color=colour,
            label=f"{name}-led" if by == "led" and name != "all" else str(name),
        )
        ax.fill_between(
            means.index,
            means["mean"] - 1.96 * means["sem"],
            means["mean"] + 1.96 * means["sem"],
            color=colour,
            alpha=0.15,
        )
    ax.set(title=title, xlabel=xlabel, ylabel="weight of the image")
    _legend(ax)
    return ax


def calibration(table: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Reliability diagram: observed against promised relevance, one line per variant; `makelib.study.diagnostics.calibration`."""
    ax = _axes(ax, figsize=(5.2, 4))
    ax.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    for name, group in table.groupby("variant", sort=False):
        ax.plot(group["promised"], group["observed"], marker="o", color=COLOURS.get(name), label=drawable(name))
    ends = (0, 1.05 * max(0.1, table["promised"].max(), table["observed"].max()))
    ax.set(title=title, xlabel="promised share of relevant hits", ylabel="observed share", xlim=ends, ylim=ends)
    _legend(ax)
    return ax


def plane(
    parts: Sequence[tuple[str, str | None, pd.DataFrame]],
    hits: pd.DataFrame,
    query: np.ndarray,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """The map of a catalogue: `makelib.workbook.map.groups`, rings around the hits of a query, a star where it is itself."""
    ax = _axes(ax, figsize=(7.2, 5.2))
    for name, colour, part in parts:
        shade = {"c": part["weight"], "cmap": "cividis", "vmin": 0, "vmax": 1} if colour is None else {"color": colour}
        drawn = ax.scatter(part["x"], part["y"], s=7, linewidths=0, alpha=0.75, label=drawable(name), **shade)
        if colour is None:
            ax.figure.colorbar(drawn, label=title)
    ax.scatter(hits["x"], hits["y"], s=60, facecolors="none", edgecolors="#D55E00", linewidths=1.4, label="hits")
    ax.scatter(*query, marker="*", s=190, color="#D55E00", edgecolors="white", label="the query")
    ax.set(title=f"Coloured by {title}", xticks=[], yticks=[], aspect="equal")
    _legend(ax, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, markerscale=1.2) if parts[0][1] else _legend(ax)
    return ax


def tradeoff(
    table: pd.DataFrame, x: str, y: str, title: str, xlabel: str, ylabel: str, by: str = "index", ax: Axes | None = None
) -> Axes:
    """y against x with one line per kind of index; for recall, latency and memory as a catalogue grows."""
    ax = _axes(ax)
    for name, group in table.groupby(by, sort=False):
        group = group.sort_values(x)
        ax.plot(group[x], group[y], marker="o", label=name)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    _legend(ax)
    return ax


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"= {value:.3f}".replace("0.", ".")


def _wrapped(text: str, width: int = 18, lines: int = 3) -> str:
    return textwrap.fill(drawable(text), width, max_lines=lines, placeholder=" …")
