"""The command line: `python -m makelib …`. Reads words, calls the library, prints tables; it computes nothing itself.

The library is imported inside each command, so that `--help` and a mistyped word answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from makelib.runtime import DISK, Stopped, UserError, loading, meant

if TYPE_CHECKING:
    import pandas as pd

    from makelib.data.catalog import Catalog

#: exit code of an import that lost a larger share than `--warn-share` of a table's rows or of the photographs
LOST = 3

# -- commands ---------------------------------------------------------------------------------------------------------


def data_bazaar(given: Namespace) -> None:
    from makelib.data.sources import open_catalog
    from makelib.data.sources.bazaar import world
    from makelib.data.tables import check_target
    from makelib.settings import preset

    settings = preset(given.preset).replace(**overrides(given.set))
    if given.out:
        check_target(given.out)  # before anything is made
    catalog = world.generate(settings.bazaar, given.out) if given.out else open_catalog("bazaar", settings)
    print(
        f"{catalog.folder}: {len(catalog)} products, {len(catalog.queries)} queries, {len(catalog.interactions)} clicks"
    )


def data_import(given: Namespace) -> int:
    from makelib.data.sources.files.health import health_report
    from makelib.data.sources.files.importer import import_catalog
    from makelib.data.sources.files.options import ImportOptions, read_options

    columns = dict(_pair(text, "--map", "title=name") for text in given.map)
    if not given.folder.is_dir():
        raise UserError(f"There is no folder {given.folder}.")
    stated = {name: value for name, value in vars(given).items() if name in ImportOptions.__dataclass_fields__}
    options = read_options(given.folder, columns=columns or None, **stated)
    catalog = import_catalog(given.folder, given.out or Path("data") / given.folder.resolve().name, options)
    print(_imported(catalog, health_report(catalog)))
    return LOST if any(note.startswith("LOST: ") for note in catalog.info["notes"]) else 0


def data_hub(given: Namespace) -> None:
    from makelib.data.sources import hub
    from makelib.data.sources.files.health import health_report
    from makelib.data.tables import check_target
    from makelib.settings import preset

    settings = preset(given.preset).replace(**overrides(given.set)).files
    stated = {key: getattr(given, key) for key in ("limit", "seed") if getattr(given, key) is not None}
    if given.out:
        check_target(given.out)  # before anything is fetched
    catalog = hub.open_set(given.name.removeprefix("hub:"), dataclasses.replace(settings, **stated), out=given.out)
    print(_imported(catalog, health_report(catalog)))


def train(given: Namespace) -> None:
    from makelib.study.experiment import Experiment
    from makelib.study.studies import STUDIES

    study = next((study for study, variants in STUDIES.items() if given.variant in variants), None)
    if study is None:
        known = dict.fromkeys(variant for variants in STUDIES.values() for variant in variants)
        raise UserError(f"There is no variant {given.variant!r}; {meant(given.variant, known)}")
    experiment = Experiment.open(_run(given), given.preset, given.catalog, 0, overrides(given.set))
    arm = experiment.arm(study, given.variant, given.seed)
    experiment.train([arm])
    if os.environ.get("RANK", "0") == "0":
        print(arm.folder)


def index(given: Namespace) -> None:
    from makelib.data.catalog import Catalog
    from makelib.search.retriever import Retriever
    from makelib.settings import read_yaml, write_yaml
    from makelib.study.experiment import find_model

    folder = find_model(given.run, given.variant)
    retriever, settings, names = Retriever.open(folder), read_yaml(folder / "settings.yaml"), [folder.name]
    if given.catalog:
        retriever = retriever.refreshed(Catalog.open(given.catalog))
        names.append(given.catalog.resolve().name)
    if given.kind or not given.catalog:
        settings = settings.replace(**{"index.kind": given.kind or "hnsw"})
        retriever = retriever.indexed(settings.index)
        names.append(settings.index.kind)
    built, kind = retriever.index, retriever.index.manifest["kind"]
    out = given.out or folder.with_name("-".join(names))
    retriever.save(out)
    write_yaml(settings, out / "settings.yaml")
    print(f"{out}: {len(built)} products, {built.dim} dimensions, {kind}, {built.nbytes / 2**20:.1f} MiB")


def search(given: Namespace) -> None:
    from makelib.search.explain import GUESS, knows
    from makelib.search.retriever import Retriever
    from makelib.study.experiment import find_model

    query = os.fsencode(given.query).decode("utf-8", "replace")  # as it was typed, also where the locale is not UTF-8
    if not query.strip():
        raise UserError('The query is empty; write some words, such as "green backpack".')
    retriever = Retriever.open(find_model(given.run, given.variant))
    hits = retriever.search(query, given.k, given.category).drop(columns="row")
    if not knows(retriever.catalog, query):
        print(f"makelib: {GUESS}.", file=sys.stderr, flush=True)
        hits.insert(0, "guess", True)
    print(hits.to_json(orient="records", force_ascii=False, indent=2) if given.json else _table(hits))


def evaluate(given: Namespace) -> None:
    import pandas as pd

    from makelib.search.retriever import Retriever
    from makelib.settings import read_yaml
    from makelib.study import metrics
    from makelib.study.arms import queries_of
    from makelib.study.experiment import find_model
    from makelib.study.statistics import interval
    from makelib.study.trec import export_trec

    folder = find_model(given.run, given.variant)
    retriever, settings = Retriever.open(folder), read_yaml(folder / "settings.yaml")
    catalog, judged = retriever.catalog, queries_of(retriever.catalog, settings)
    queries = retriever.model.encode_queries(catalog.queries["query"].iloc[judged].tolist())
    rows, scores = retriever.index.search(queries, max(settings.evaluation.cutoffs))
    table = metrics.evaluate(catalog, judged, rows, settings.evaluation)
    means = {
        metric: interval(table[metric].to_numpy()[None], table["intent"], settings.evaluation.alpha)
        for metric in table.columns
        if "@" in metric and not metric.endswith("ceiling")
    }
    positives = table["positives"].mean()
    print(f"{retriever.name}: {len(judged)} test queries, {len(catalog)} products, {positives:.1f} relevant a query;")
    print("fractions, with their interval over queries\n")
    print(_table(pd.DataFrame(means, ["mean", "low", "high"]).T))
    if given.trec:
        export_trec(catalog, judged, rows, scores, given.trec, retriever.name.replace(" ", "_"))
        print(f"\nTREC files: {given.trec}")


def ablate(given: Namespace) -> None:
    from makelib.study.experiment import Experiment
    from makelib.study.statistics import significance_table
    from makelib.study.studies import SWEEPS

    experiment = Experiment.open(_run(given), given.preset, given.catalog, given.seeds, overrides(given.set))
    rows = experiment.sweep(given.study) if given.study in SWEEPS else experiment.study(given.study)
    table = significance_table(rows, ["Rel@10", "HitRate@100"])
    print(f"{_table(table)}\n\n{table.attrs['legend']}")


def tune(given: Namespace) -> None:
    from makelib.study.experiment import Experiment
    from makelib.study.tuning import tune as search

    experiment = Experiment.open(_run(given), given.preset, given.catalog, given.seeds, overrides(given.set))
    print(_table(search(experiment, given.fusions or experiment.settings.ablation.fusions).round(1)))


def reproduce(given: Namespace) -> int:
    from makelib.workbook.reports import run

    return run.reproduce(given.preset, given.catalog, given.seeds, _run(given), overrides(given.set))


def report_diff(given: Namespace) -> None:
    from makelib.workbook.reports.diff import diff

    found = diff(given.before, given.after)
    print(f"{found.names[0]} → {found.names[1]}\n")
    print(
        _table(found.changes.set_index("what")) if len(found.changes) else "Settings, code and catalogue are the same."
    )
    print()
    print(_table(found.numbers.set_index("study").round(2)) if len(found.numbers) else "No number stands in both.")
    print(
        "\nMeans and differences in per cent and points; noise is judged query by query where both runs kept their scores, else from both "
        "intervals, corrected over all rows (Holm)."
    )
    print("\n".join(found.notes))


def report_pack(given: Namespace) -> None:
    from makelib.workbook.reports.pack import pack

    out = pack(given.run, given.out)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB; unpack it anywhere and open index.html")


def bench(given: Namespace) -> None:
    from makelib.settings import preset
    from makelib.study.bench import bench
    from makelib.workbook.reports.bench import page

    table = bench(preset(given.preset).replace(**overrides(given.set)), given.out)
    print(f"{_table(table)}\n\n{table.attrs['legend']}; ratios: {page(given.out)}")


#: commands that wait for torch, and say so
TORCH = {train, index, search, evaluate, ablate, tune, reproduce, bench}

# -- words ------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A mistyped word is a mistake that the user can mend: one line, as for every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`.")


def parser() -> argparse.ArgumentParser:
    """Every command with its options; `command` of the parsed namespace is the function to call."""
    changes = _Parser(add_help=False)
    changes.add_argument("--preset", default="quick", help="smoke, quick or full (default: quick)")
    changes.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="such as training.steps=100")
    experiment = _Parser(add_help=False, parents=[changes])
    experiment.add_argument(
        "--catalog", default="bazaar", help="bazaar, bazaar-zh (the same in Chinese), a folder or hub:<name>"
    )
    experiment.add_argument(
        "--cluster", metavar="ADDRESS", help="train on the workers of a Dask scheduler, such as tcp://10.0.0.5:8786"
    )
    several = _Parser(add_help=False, parents=[experiment])
    several.add_argument("--seeds", type=int, default=0, help="how many seeds; 0, the default: as the preset says")
    trained = _Parser(add_help=False)
    trained.add_argument("--run", required=True, help="run folder, its name under reports/, or a model folder")
    trained.add_argument("--variant", help="which trained variant (default: the fullest)")

    top = _Parser(
        prog="python -m makelib", description="Product search that weighs title and image, and its ablations."
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _data_commands(commands, changes)

    sub = _add(commands, train, "train", "train one variant", experiment)
    sub.add_argument("--variant", default="adaptive", help="such as title, mean, adaptive, both (default: adaptive)")
    sub.add_argument("--seed", type=int, default=0, help="(default: 0)")
    sub.add_argument("--run", type=Path, help="run folder (default: reports/<preset>)")

    sub = _add(
        commands, index, "index", "build another index over a trained model, or take products in and out", trained
    )
    kinds = ("exact", "hnsw", "ivf", "ivf-pq", "milvus")
    sub.add_argument("--kind", choices=kinds, help="(default: hnsw; with --catalog, the one that is there)")
    sub.add_argument(
        "--catalog",
        type=Path,
        help="a newer edition: what is new or changed is encoded and put in, what is gone taken out",
    )
    sub.add_argument("--out", type=Path, help="folder (default: beside the model, its name and what is other)")

    sub = _add(commands, search, "search", "search a catalogue by text", trained)
    sub.add_argument("query", help='such as "green backpack"')
    sub.add_argument("-k", type=int, default=10, help="how many products (default: 10)")
    sub.add_argument("--category", help="only products of this category")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = _add(commands, evaluate, "evaluate", "judge a trained model on the test queries", trained)
    sub.add_argument("--trec", type=Path, help="export run and judgments as TREC files into this folder, too")

    _study_commands(commands, several)
    _report_commands(commands)
    sub = _add(commands, bench, "bench", "time each stage on this machine", changes)
    sub.add_argument(
        "--out", type=Path, default=Path("reports/bench"), help="folder of the ratios (default: reports/bench)"
    )
    sub.epilog = "Takes some minutes with --preset smoke; search is measured at a million products."
    return top


def _add(
    to: Any, function: Callable, name: str, text: str, *parents: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    added = to.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", parents=parents)
    added.set_defaults(command=function)
    return added


def _data_commands(commands: Any, changes: argparse.ArgumentParser) -> None:
    data = commands.add_parser("data", help="make or import a catalogue", description="Make or import a catalogue.")
    sources = data.add_subparsers(title="sources", metavar="SOURCE", required=True)
    sub = _add(sources, data_bazaar, "bazaar", "generate the embedded world", changes)
    sub.add_argument("--out", type=Path, help="folder (default: under data/, where runs look for it)")
    sub = _add(sources, data_import, "import", "import a folder of products")
    _import_options(sub)
    sub = _add(sources, data_hub, "hub", "fetch and import a public data set", changes)
    sub.add_argument("name", help="such as fashion-product-images-small; a wrong name lists all")
    sub.add_argument("--limit", type=int, help="products drawn; 0: all (default: files.limit of the preset)")
    sub.add_argument("--seed", type=int, help="of the draw (default: files.seed)")
    sub.add_argument("--out", type=Path, help="catalogue folder (default: under data/, where runs look for it)")


def _import_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("folder", type=Path, help="holds products.csv, .parquet or .jsonl, and the images")
    sub.add_argument("--out", type=Path, help="catalogue folder (default: data/<name of the folder>)")
    sub.add_argument("--name", help="what reports call it (default: the folder's name)")
    sub.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="KEY=COLUMN",
        help="such as title=productDisplayName or queries.query_id=_id",
    )
    sub.add_argument("--encoding", help="of CSV and JSON Lines, such as gb18030 or latin-1 (default: utf-8)")
    sub.add_argument("--limit", type=int, help="products drawn at random; 0: all")
    sub.add_argument(
        "--seed",
        type=int,
        help="of the draw, of generated queries, terse sellers and careless photographers (default: 0)",
    )
    sub.add_argument(
        "--images-per-product", type=int, metavar="N", help="photographs or frames kept of one (default: 8)"
    )
    sub.add_argument("--label-columns", nargs="+", metavar="COLUMN", help="become attributes (default: few values)")
    sub.add_argument("--query-columns", nargs="+", metavar="COLUMN", help="what generated queries ask for")
    sub.add_argument("--queries", type=int, metavar="N", help="generated where the folder brings no interactions")
    sub.add_argument("--clicks", type=int, metavar="N", help="generated, likewise")
    sub.add_argument(
        "--hide-columns", nargs="+", metavar="COLUMN", help="terse sellers: titles lose the words of these"
    )
    sub.add_argument("--hide-words", nargs="+", metavar="WORD", help="terse sellers: titles lose these words too")
    sub.add_argument("--hide-share", type=float, metavar="SHARE", help="terse sellers: which share of titles, 0 to 1")
    sub.add_argument(
        "--careless", type=float, metavar="SHARE", help="which share of products gets its photographs spoiled"
    )
    sub.add_argument("--text-columns", nargs="+", metavar="COLUMN", help="their words follow the title's")
    sub.add_argument("--text-words", type=int, metavar="N", help="of these columns at most (default: 40)")
    sub.add_argument("--fetch", action="store_true", default=None, help="fetch photographs that are https addresses")
    sub.add_argument(
        "--allow-hosts", nargs="+", metavar="HOST", help="private hosts, or such without https, to fetch from"
    )
    sub.add_argument(
        "--warn-share", type=float, metavar="SHARE", help="a larger share lost is exit code 3 (default: 0.05)"
    )
    sub.add_argument(
        "--mend-text", action="store_true", default=None, help="read text that was encoded twice as it was meant"
    )
    sub.add_argument("--debias", action="store_true", default=None, help="logs: take position bias out of clicks")
    sub.add_argument("--split-by", choices=("intent", "time"), help="of people's queries (default: intent)")
    sub.add_argument(
        "--rare-queries", type=int, metavar="K", help="leave out queries of fewer than K users or sessions"
    )
    sub.add_argument("--strict", action="store_true", default=None, help="a broken row or image is an error")


def _study_commands(commands: Any, several: argparse.ArgumentParser) -> None:
    sub = _add(commands, ablate, "ablate", "train and compare the variants of a study", several)
    sub.add_argument(
        "--study", default="modal_adaptation", help="or a sweep (default: modal_adaptation); a wrong name lists all"
    )
    sub.add_argument("--run", type=Path, help="run folder (default: reports/<preset>)")

    sub = _add(commands, tune, "tune", "search settings on validation queries, as many trials for each rival", several)
    sub.add_argument("--fusions", nargs="+", metavar="NAME", help="(default: ablation.fusions of the preset)")
    sub.add_argument("--run", type=Path, help="run folder (default: reports/<preset>)")

    sub = _add(commands, reproduce, "reproduce", "execute all notebooks and write the report", several)
    sub.add_argument("--out", dest="run", type=Path, help="folder of the report (default: reports/<preset>)")


def _report_commands(commands: Any) -> None:
    report = commands.add_parser(
        "report", help="compare reports, or pack one", description="Compare reports, or pack one."
    )
    kinds = report.add_subparsers(title="what", metavar="WHAT", required=True)
    sub = _add(kinds, report_diff, "diff", "what changed between two runs, and whether it is noise")
    sub.add_argument("before", help="run folder, or its name under reports/")
    sub.add_argument("after", help="likewise")
    sub = _add(kinds, report_pack, "pack", "one file of a run, to be opened elsewhere without the models")
    sub.add_argument("run", help="run folder, or its name under reports/")
    sub.add_argument("--out", type=Path, help="archive (default: <run>.zip beside the run)")


def overrides(pairs: list[str]) -> dict[str, Any]:
    """`["training.steps=100", …]` as a dictionary, values read as YAML."""
    import yaml

    def value(text: str) -> Any:
        try:
            read = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set: {text!r} is not a value; write it as in YAML, such as [title, mean].") from None
        try:
            return float(read) if isinstance(read, str) else read  # YAML takes 1e-3 for a word
        except ValueError:
            return read

    return {name: value(text) for name, text in (_pair(pair, "--set", "training.steps=100") for pair in pairs)}


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise UserError(f"{option} {text!r} lacks a name or an `=`; write it as {option} {example}.")
    return name.strip(), value.strip()


def _run(given: Namespace) -> Path:
    """The run folder; without one, a name that says preset and catalogue."""
    from makelib.study.experiment import run_folder

    return given.run or run_folder(given.preset, given.catalog)


def _imported(catalog: Catalog, health: str) -> str:
    return f"{catalog.folder}: {len(catalog)} products, {len(catalog.queries)} queries\n\n{health}"


def _table(table: pd.DataFrame) -> str:
    return table.to_string(index=table.index.inferred_type == "string", float_format="{:.3f}".format, max_colwidth=60)


def main(words: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 not all done, 2 a mistake to mend, 3 done, but an import lost much, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that children are stopped, as after Ctrl-C
    try:
        given = parser().parse_args(words)
        if os.environ.get("RANK", "0") != "0":  # of processes that were started together one shows its progress
            os.environ["MAKELIB_HEADLESS"] = "1"
        if getattr(given, "cluster", None):
            os.environ["MAKELIB_CLUSTER"] = given.cluster  # for the chapters' kernels, too
        if given.command in TORCH:
            with loading():
                import makelib.search.retriever  # noqa: F401
        code = given.command(given) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"makelib: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _hush()
        return 0
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"makelib: {error}. Nothing half-written was kept; make room or choose another folder.", file=sys.stderr)
        _hush()
        return 2
    except Stopped as stopped:
        print(f"makelib: {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("makelib: interrupted", file=sys.stderr)
        return 130


def _hush() -> None:
    """What standard output still holds has nowhere to go, and Python would complain of it when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
