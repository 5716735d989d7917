"""The ablation explorer's HTML: result rows in, strings out. Drawn as SVG by hand, for a figure must follow a click at once.

Names of variants, segments and queries are untrusted; they go through `text` and `attribute` of the query explorer's HTML.
"""

from __future__ import annotations

import functools
import importlib.resources
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from makelib.workbook.ablations.state import State
from makelib.workbook.explorer import html as explorer
from makelib.workbook.explorer.html import text
from makelib.workbook.reports.verdict import bounds, judgement, p_of, p_text, points, sentence

#: pixels of a strip in a table, and of a plot below it
WIDTH, HEIGHT = 240, 22
PLOT = (760, 200)
SIGNS = {"better": "▲ better", "worse": "▼ worse", "unclear": "≈ no significant difference", "not tested": "not tested"}


@functools.cache
def style() -> str:
    """The query explorer's style sheet, and what is added to it."""
    own = importlib.resources.files("makelib.workbook").joinpath("static/ablations.css").read_text("utf-8")
    return f"{explorer.style()}<style>{own}</style>"


def page(*parts: str) -> str:
    return explorer.page(style(), *parts)


def heading(words: str) -> str:
    return f'<h4 class="mkx-query">{text(words)}</h4>'


# -- the board --------------------------------------------------------------------------------------------------------


def board(rows: Sequence[dict[str, Any]], state: State, catalogue: str, left_out: int) -> str:
    """Verdict, then a table with a forest in it: the mean of each variant, and its paired difference to the reference."""
    if not rows:
        return '<div class="mkx-alert" role="alert">Too few queries of this segment have this metric.</div>'
    alpha = round(1 - state.level, 6)
    compared = {row["variant"]: row for row in rows if row["reference"] is not None}
    means = _axis([bound for row in rows for bound in (*row["interval"], *row["per_seed"])])
    gaps = _axis([bound for row in compared.values() for bound in row["difference_interval"]] + [0.0])
    lines = []
    for row in rows:
        said = judgement(row, alpha)
        low, high = row["interval"]
        cells = (
            f"<th scope='row'>{text(row['variant'])}</th><td>{100 * row['mean']:.1f}</td>"
            f"<td>{_strip(means, row['mean'], (low, high), row['per_seed'])}</td>"
        )
        if row["reference"] is None:
            cells += "<td colspan='4' class='mka-quiet'>the reference</td>"
        else:
            cells += (
                f"<td>{points(row['difference'])} <small>{bounds(row['difference_interval'])}</small></td>"
                f"<td>{_strip(gaps, row['difference'], row['difference_interval'], (), zero=True, kind=said)}</td>"
                f"<td>{p_text(p_of(row)).removeprefix('p ').removeprefix('= ')}</td><td class='mka-{said.split()[0]}'>{SIGNS[said]}</td>"
            )
        lines.append(f'<tr data-variant="{explorer.attribute(row["variant"])}">{cells}</tr>')
    first = rows[0]
    head = "".join(f"<th scope='col'>{name}</th>" for name in (
        "variant", text(state.metric) + ", %", _ticks(means, percent=True), "difference, points", _ticks(gaps),
        "p (Holm)", "verdict",
    ))  # fmt: skip
    seeds = f"seed{'s' * (len(state.seeds) > 1)} {', '.join(map(str, state.seeds))}"
    about = (
        f"{text(catalogue)} · segment {text(state.segment)}: {first['queries']:,} unseen queries of {first['intents']:,} intents · "
        f"{seeds} · {state.level:.0%} intervals"
    )
    aside = (
        f" {left_out} further arm{'s' * (left_out > 1)} of the run cannot be compared: judged on other queries, or made by "
        "another version of the code."
        if left_out
        else ""
    )
    return (
        f'{verdict(rows, state)}<div class="mka-scroll" tabindex="0" role="region" aria-label="Variants compared">'
        f'<table class="mka-table"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        f'<p class="mka-about">{about}. Dot: mean; bar: its interval over seeds and intents; ticks: seeds. p of the paired difference, '
        f"corrected (Holm) over the {len(compared)} comparison{'s' * (len(compared) > 1)} shown.{aside}</p>"
    )


def verdict(rows: Sequence[dict[str, Any]], state: State) -> str:
    """The chosen comparison in one sentence, then how the others ended."""
    alpha = round(1 - state.level, 6)
    compared = [row for row in rows if row["reference"] is not None]
    chosen = next((row for row in compared if row["variant"] == state.against), None)
    said = text(sentence(chosen, alpha)) if chosen else ""
    ended = [
        f"{', '.join(map(text, names))} {words}"
        for kind, words in (("better", "better"), ("worse", "worse"), ("unclear", "not significantly different"))
        if (names := [r["variant"] for r in compared if r is not chosen and judgement(r, alpha) == kind])
    ]
    others = f" Against {text(state.reference)} also: {'; '.join(ended)}." if ended else ""
    return f'<div class="mka-verdict" role="status"><b>{said}</b>{others}</div>'


def where(rows: Sequence[dict[str, Any]], state: State) -> str:
    """One comparison in every segment."""
    alpha = round(1 - state.level, 6)
    compared = [row for row in rows if row["reference"] is not None]
    axis = _axis([bound for row in compared for bound in row["difference_interval"]] + [0.0])
    lines = "".join(
        f"<tr><th scope='row'>{text(row['segment'])}</th><td>{row['queries']:,}</td>"
        f"<td>{points(row['difference'])} <small>{bounds(row['difference_interval'])}</small></td>"
        f"<td>{_strip(axis, row['difference'], row['difference_interval'], (), zero=True, kind=judgement(row, alpha))}</td>"
        f"<td>{p_text(p_of(row)).removeprefix('p ').removeprefix('= ')}</td></tr>"
        for row in compared
    )
    return (
        '<div class="mka-scroll" tabindex="0" role="region" aria-label="By segment"><table class="mka-table"><thead><tr>'
        f"<th scope='col'>segment</th><th scope='col'>queries</th><th scope='col'>{text(state.against)} − "
        f"{text(state.reference)}, points</th><th scope='col'>{_ticks(axis)}</th><th scope='col'>p</th></tr></thead>"
        f'<tbody>{lines}</tbody></table></div><p class="mka-about">p values here are not corrected: read them as hints.</p>'
    )


def worth(steps: Sequence[tuple[str, dict[str, Any]]], alpha: float) -> str:
    """What each step is worth, one line each: the one figure of a report's first screen."""
    axis = _axis([bound for _, row in steps for bound in row["difference_interval"]] + [0.0])
    lines = "".join(
        f"<tr><th scope='row'>{text(name)}</th><td>{text(row['variant'])} − {text(row['reference'])}</td>"
        f"<td>{points(row['difference'])} <small>{bounds(row['difference_interval'])}</small></td>"
        f"<td>{_strip(axis, row['difference'], row['difference_interval'], (), zero=True, kind=judgement(row, alpha))}</td>"
        f"<td class='mka-{judgement(row, alpha).split()[0]}'>{SIGNS[judgement(row, alpha)]}</td></tr>"
        for name, row in steps
    )
    head = "".join(
        f"<th scope='col'>{name}</th>"
        for name in ("", "compared", f"points of {text(steps[0][1]['metric'])}", _ticks(axis), "verdict")
    )
    return page(
        '<div class="mka-scroll" tabindex="0" role="region" aria-label="What each step is worth"><table class="mka-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


# -- query by query ---------------------------------------------------------------------------------------------------


def queries(table: pd.DataFrame, state: State) -> str:
    """Sorted bars of the difference per query: what is won on the left, what is lost on the right."""
    if table.empty:
        return "<p>No query of this segment has this metric.</p>"
    width, height = PLOT[0], 120
    values = table["difference"].to_numpy()
    most = max(np.abs(values).max(), 1e-9)
    x = np.linspace(0, width, len(values) + 1)
    y = height / 2 * (1 - values / most)
    shapes = ""
    for kind, chosen in (("better", values > 0), ("worse", values < 0)):
        path = "".join(
            f"M{x[i]:.1f} {height / 2:.1f}V{y[i]:.1f}H{x[i + 1]:.1f}V{height / 2:.1f}" for i in np.flatnonzero(chosen)
        )
        shapes += f'<path class="mka-{kind}" d="{path}"/>'
    if state.place:
        at = (x[state.place - 1] + x[state.place]) / 2
        shapes += f'<path class="mka-here" d="M{at:.1f} 0V{height}"/>'
    won, lost = int((values > 0).sum()), int((values < 0).sum())
    tie = len(values) - won - lost
    label = f"{state.against} wins {won:,} queries, {state.reference} wins {lost:,}, {tie:,} are alike"
    return (
        f'<svg class="mka-queries" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{explorer.attribute(label)}"><path class="mka-zero" d="M0 {height / 2}H{width}"/>{shapes}</svg>'
        f'<p class="mka-about">{text(label)}. Each bar is a query, from the one won by most ({points(values[0])} points) to the '
        f"one lost by most ({points(values[-1])}).</p>"
    )


def query_line(row: pd.Series, state: State) -> str:
    return explorer.status(
        row["query"],
        f"{text(state.metric)}: {text(state.against)} {100 * row['against']:.0f} %, {text(state.reference)} "
        f"{100 * row['reference']:.0f} % (mean over seeds); rankings of seed {state.seeds[0]}, {text(state.reference)} on the left",
    )


def no_model(names: Sequence[str]) -> str:
    """In place of two rankings, where one of them was not made by a model of this run."""
    said = ", ".join(map(text, names))
    return f"<p>{said}: scores are kept, and no model to search with. Choose two trained variants to see their rankings.</p>"


# -- sweeps and trainings ---------------------------------------------------------------------------------------------


def curve(rows: Sequence[dict[str, Any]], missing: Sequence[Any], state: State) -> str:
    """The metric against the values of one setting, with its interval; numbers to scale, words side by side."""
    lacks = f"<p>Not trained: {text(', '.join(map(str, missing)))}.</p>" if missing else ""
    rows = list({row["variant"]: row for row in rows}.values())
    if not rows:
        return lacks or "<p>No value is trained.</p>"
    width, height, left, low = *PLOT, 48, 24
    try:
        place = np.array([float(row["variant"]) for row in rows])
    except ValueError:
        place = np.arange(len(rows), dtype=float)
    span = max(place.max() - place.min(), 1e-12)
    x = left + 24 + (place - place.min()) / span * (width - left - 80) if len(rows) > 1 else np.array([width / 2])
    axis = _axis([bound for row in rows for bound in row["interval"]])
    y = [_at(axis, row["mean"], height - low, 8, up=True) for row in rows]
    band = [[_at(axis, row["interval"][side], height - low, 8, up=True) for row in rows] for side in (0, 1)]
    outline = [*zip(x, band[1], strict=True), *reversed(list(zip(x, band[0], strict=True)))]
    drawn = f'<path class="mka-band" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in outline)}Z"/>'
    drawn += f'<path class="mka-line" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))}"/>'
    for a, b, row in zip(x, y, rows, strict=True):
        said = f"{row['variant']}: {100 * row['mean']:.1f} % [{100 * row['interval'][0]:.1f}, {100 * row['interval'][1]:.1f}]"
        drawn += (
            f'<circle class="mka-dot" cx="{a:.1f}" cy="{b:.1f}" r="4"><title>{explorer.attribute(said)}</title></circle>'
            f'<text x="{a:.1f}" y="{height - 6}" text-anchor="middle">{explorer.attribute(row["variant"])}</text>'
        )
    for value in _nice(axis):
        at = _at(axis, value, height - low, 8, up=True)
        drawn += (
            f'<path class="mka-grid" d="M{left} {at:.1f}H{width}"/>'
            f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{100 * value:.3g}</text>'
        )
    label = f"{state.metric} over {state.setting}"
    return (
        f'<h4>{text(label)}, %</h4><svg class="mka-plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{explorer.attribute(label)}">{drawn}</svg>{lacks}'
    )


def training(said: str, steps: int, of: int, curves: pd.DataFrame) -> str:
    """A training that runs or ended: how far, loss, validation recall."""
    share = 100 * steps / max(1, of)
    bar = (
        f'<div class="mka-progress" role="progressbar" aria-valuemin="0" aria-valuemax="{of}" aria-valuenow="{steps}" '
        f'aria-label="steps"><span style="width:{share:.1f}%"></span></div>'
    )
    head = f'<div class="mkx-status" role="status">{text(said)}</div>'
    return f'{head}{bar}<div class="mka-pair">{_spark(curves, "loss")}{_spark(curves, "validation Recall@100")}</div>'


def _spark(curves: pd.DataFrame, column: str) -> str:
    """One column of the curves as a small line with its last value."""
    table = curves.dropna(subset=column)
    if table.empty:
        return f'<figure class="mka-spark"><figcaption>{column}: not yet</figcaption></figure>'
    values, steps = table[column].to_numpy(), table["step"].to_numpy(float)
    axis, width, height = _axis(values), 360, 70
    x = 4 + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * (width - 8)
    line = "L".join(f"{a:.1f} {_at(axis, b, height, 4, up=True):.1f}" for a, b in zip(x, values, strict=True))
    dots = "".join(
        f'<circle class="mka-dot" cx="{a:.1f}" cy="{_at(axis, b, height, 4, up=True):.1f}" r="3"/>'
        for a, b in zip(x, values, strict=True)
    )
    return (
        f'<figure class="mka-spark"><figcaption>{column}: <b>{values[-1]:.3f}</b> at step {steps[-1]:.0f}</figcaption>'
        f'<svg class="mka-plot" viewBox="0 0 {width} {height}" role="img" aria-label="{column}"><path class="mka-line" d="M{line}"/>'
        f"{dots if len(values) < 30 else ''}</svg></figure>"
    )


# -- small drawings ---------------------------------------------------------------------------------------------------

Axis = tuple[float, float]


def _axis(values: Sequence[float]) -> Axis:
    """Ends of an axis that shows all these values, with a little room."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _at(axis: Axis, value: float, size: float, edge: float, up: bool = False) -> float:
    share = (value - axis[0]) / (axis[1] - axis[0])
    return edge + (1 - share if up else share) * (size - 2 * edge)


def _nice(axis: Axis) -> list[float]:
    """Three or four round values of an axis."""
    span = axis[1] - axis[0]
    step = 10 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.25, 0.5, 1.0, 2.0) if span / (step * factor) <= 5)
    first = math.ceil(axis[0] / step - 1e-9)
    return [index * step for index in range(first, math.floor(axis[1] / step + 1e-9) + 1)]


def _ticks(axis: Axis, percent: bool = False) -> str:
    """The scale above a column of strips."""
    marks = "".join(
        f'<text x="{min(max(_at(axis, value, WIDTH, 8), 14), WIDTH - 14):.1f}" y="12" text-anchor="middle">{100 * value:.3g}'
        f"{' %' if percent else ''}</text>"
        for value in _nice(axis)
    ).replace(">-", ">−")
    return (
        f'<svg class="mka-strip" width="{WIDTH}" height="16" viewBox="0 0 {WIDTH} 16" aria-hidden="true">{marks}</svg>'
    )


def _strip(
    axis: Axis, value: float, interval: Sequence[float], ticks: Sequence[float], zero: bool = False, kind: str = "mean"
) -> str:
    """A dot with its interval on an axis; ticks are seeds."""
    middle = HEIGHT / 2
    drawn = "".join(f'<path class="mka-grid" d="M{_at(axis, v, WIDTH, 8):.1f} 0V{HEIGHT}"/>' for v in _nice(axis))
    if zero:
        drawn += f'<path class="mka-zero" d="M{_at(axis, 0, WIDTH, 8):.1f} 0V{HEIGHT}"/>'
    if all(map(math.isfinite, interval)):
        low, high = (_at(axis, bound, WIDTH, 8) for bound in interval)
        drawn += f'<path class="mka-interval" d="M{low:.1f} {middle}H{high:.1f}"/>'
    drawn += "".join(f'<path class="mka-tick" d="M{_at(axis, v, WIDTH, 8):.1f} 4V{HEIGHT - 4}"/>' for v in ticks)
    drawn += f'<circle cx="{_at(axis, value, WIDTH, 8):.1f}" cy="{middle}" r="5"/>'
    return (
        f'<svg class="mka-strip mka-is-{kind.split()[0]}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'aria-hidden="true">{drawn}</svg>'
    )
