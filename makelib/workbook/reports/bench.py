"""The page of `make bench`: every ratio with its bar, and how cost grows with the number of products. No script, no network."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from makelib.runtime import atomic_file
from makelib.workbook import plots

#: what must hold: the largest (or, marked ≥, the least) value of a ratio
BARS = {
    "train_vs_open_clip": ("≥", 1.3), "adaptive_vs_joint_step": ("≤", 1.0), "make_vs_joint_step": ("≤", 1.2),
    "batch_preparation_share": ("≤", 0.1), "search_vs_faiss_1e6": ("≤", 1.05), "ann_recall_1e6": ("≥", 0.98),
    "ann_time_vs_exact_1e6": ("≤", 0.05), "onnx_vs_torch_query": ("≤", 1.0), "onnx_vs_torch_bytes": ("≤", 1.0),
    "onnx_difference": ("≤", 1e-5),
}  # fmt: skip


def page(folder: Path | str) -> Path:
    """`folder/index.html` from the JSON files that `makelib.study.ratios` wrote there."""
    folder = Path(folder)
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    rows = []
    for name, result in found.items():
        for ratio, value in result["ratios"].items():
            sign, bar = BARS.get(ratio, ("", None))
            held = "" if bar is None else "yes" if (value >= bar if sign == "≥" else value <= bar) else "NO"
            rows.append((name, ratio, f"{value:.4g}", "" if bar is None else f"{sign} {bar:g}", held))
    table = pd.DataFrame(rows, columns=["benchmark", "ratio", "measured", "bar", "holds"]).to_html(index=False)
    machine = next(iter(found.values()))["provenance"] if found else {}
    about = html.escape(
        f"{machine.get('processor')}; threads: {machine.get('threads')}; commit {machine.get('git_commit')}"
    )
    figures = _growth(pd.DataFrame(found["growth"]["rows"])) if "growth" in found else ""
    out = folder / "index.html"
    with atomic_file(out) as draft:
        draft.write_text(
            "<!doctype html><html lang=en><meta charset=utf-8><title>makelib: benchmarks</title>"
            "<style>body{font:15px sans-serif;margin:2rem;max-width:64rem}td,th{padding:.2rem .8rem;text-align:left}"
            "table{border-collapse:collapse;border:0}img{max-width:100%}</style>"
            f"<h1>Benchmarks</h1><p>{about}. Peers take turns within one process; what else the machine did is not known.</p>"
            f"{table}{figures}</html>",
            encoding="utf-8",
        )
    return out


def _growth(rows: pd.DataFrame) -> str:
    """Time of a query, time to build, bytes: lines over the number of products, as one picture."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    rows = rows.assign(milliseconds=1000 * rows["query_seconds"])
    wanted = (
        ("milliseconds", "one query, ms"),
        ("build_seconds", "build, seconds of a core"),
        ("bytes_per_product", "bytes a product"),
    )
    for ax, (name, label) in zip(axes, wanted, strict=True):
        plots.tradeoff(rows, "products", name, "", "products", label, by="kind", ax=ax)
        ax.set(xscale="log", yscale="log")
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    plt.close(figure)
    code = base64.b64encode(picture.getvalue()).decode()
    return f'<h2>Growth</h2><img alt="Time and size of each kind of index as the catalogue grows" src="data:image/png;base64,{code}">'
