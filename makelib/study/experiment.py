"""The grid of variants x seeds: trains what is missing, keeps what is done, and never scores an arm that did not run.

An *arm* is one variant of one study with one seed. Its folder `<run>/models/<fingerprint>/` holds model, index, product vectors,
curves and per-query scores; the fingerprint covers what a training depends on: settings, catalogue, seed and makelib's own code, so
a second run computes only what changed, an interrupted one goes on from its checkpoints, and another index or other test queries
are scored anew without a training. Equal arms of two studies are one folder.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from makelib.data.catalog import Catalog
from makelib.data.sources import open_catalog, settings_for
from makelib.data.tokens import tokenizer_for
from makelib.model.batches import Batches
from makelib.model.frozen import pictures
from makelib.model.training import training_key, untrained
from makelib.runtime import Stopped, UserError, alone, atomic_file, code_version, fingerprint, progress
from makelib.search.retriever import Retriever
from makelib.settings import Settings, differences, preset, read_yaml, to_dict, write_yaml
from makelib.study.arms import Arm, deaf_to_interrupts, queries_of, run_arm, scoring_key, steps_of, worker_pool
from makelib.study.baselines import bm25_run, fused_run
from makelib.study.bounds import oracle_run
from makelib.study.cluster import cluster_pool, run_there
from makelib.study.lines import kept, lines_of, note_of
from makelib.study.metrics import evaluate
from makelib.study.peers import peer_lines
from makelib.study.readers import READERS, can_read, reader_run
from makelib.study.segments import segments
from makelib.study.statistics import adjust, gain, result_rows
from makelib.study.studies import GAINS, PLANNED, REFERENCES, STUDIES, SWEEPS


@dataclass(frozen=True)
class Experiment:
    """Settings and a catalogue, and the folder where everything that is computed from them lands."""

    run: Path
    settings: Settings
    catalog: Catalog

    @classmethod
    def open(
        cls,
        run: Path | str,
        preset_name: str = "quick",
        catalog: str = "bazaar",
        seeds: int = 0,
        overrides: dict[str, Any] | None = None,
    ) -> Experiment:
        """Begin or go on with a run.

        Args:
            run: folder of the run, such as `reports/quick`; "" takes `run_folder(preset_name, catalog)`.
            preset_name: `smoke`, `quick` or `full`.
            catalog: see `makelib.data.sources.open_catalog`.
            seeds: how many seeds; 0 takes the preset's.
            overrides: settings that differ from the preset, such as `{"training.steps": 100}`.

        Raises `UserError`, before anything is written, for what does not fit, and for a folder that holds something else or
        another experiment; see `check_folder`.
        """
        given = {"run": run, "preset": preset_name, "catalog": catalog, "seeds": seeds, "overrides": overrides or {}}
        kinds = {"run": str | Path, "preset": str, "catalog": str, "seeds": int, "overrides": dict}
        for name, kind in kinds.items():
            if not isinstance(given[name], kind):
                wanted = getattr(kind, "__name__", "str")
                raise UserError(f"{name} must be of type {wanted}, not {given[name]!r} ({type(given[name]).__name__}).")
        run = run_folder(preset_name, catalog) if run == "" else Path(run)
        settings = settings_of(preset_name, catalog, seeds, overrides)
        with alone(run):  # another process may be writing what is looked at
            check_folder(run, settings)
        opened = open_catalog(catalog, settings)
        facts = {
            "name": opened.name,
            "fingerprint": opened.fingerprint,
            "products": len(opened),
            "queries": len(opened.queries),
            "interactions": len(opened.interactions),
            "generated_queries": bool(opened.info.get("generated_queries")),
            "notes": opened.info.get("notes", []),
            "folder": str(opened.folder),
        }
        with alone(run):
            check_folder(run, settings, opened.fingerprint)
            run.mkdir(parents=True, exist_ok=True)
            write_yaml(settings, run / "settings.yaml")
            with atomic_file(run / "catalogue.json") as draft:
                draft.write_text(json.dumps(facts, indent=2), encoding="utf-8")
        return cls(run, settings, opened)

    @classmethod
    def reopen(cls, run: Path | str) -> Experiment:
        """A run as it was left, settings and catalogue; `run` is its folder, or its name under `reports/`, here or in a folder
        above, for a notebook stands in `notebooks/`."""
        here = Path.cwd()
        for root in (here, *here.parents):
            for folder in (root / run, root / "reports" / run):
                if (folder / "catalogue.json").is_file() and (folder / "settings.yaml").is_file():
                    facts = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
                    return cls(folder, read_yaml(folder / "settings.yaml"), Catalog.open(root / facts["folder"]))
        raise UserError(
            f"There is no run in {run} or reports/{run}. Make one with `make reproduce`, or open notebook 02."
        )

    # -- arms -----------------------------------------------------------------------------------------------------

    def variants(self, study: str) -> tuple[str, ...]:
        """The variants of a study that the settings ask for, in the order of the table."""
        if study not in STUDIES:
            raise UserError(f"Unknown study {study!r}. Choose one of: {', '.join((*STUDIES, *SWEEPS))}.")
        asked = {
            "modal_adaptation": self.settings.ablation.fusions,
            "keyword_enhancement": self.settings.ablation.keywords,
        }
        chosen = asked.get(study, tuple(STUDIES[study]))
        for variant in chosen:
            if variant not in STUDIES[study]:
                raise UserError(f"Unknown variant {variant!r} of {study}. Choose among: {', '.join(STUDIES[study])}.")
        return tuple(chosen)

    def arm(self, study: str, variant: str, seed: int) -> Arm:
        """The arm, done or not."""
        if variant not in STUDIES.get(study, {}):
            raise UserError(
                f"Unknown variant {variant!r} of {study}. Choose among: {', '.join(STUDIES.get(study, {}))}."
            )
        return self.changed(STUDIES[study][variant], seed, study, variant)

    def changed(self, changes: dict[str, Any], seed: int, study: str, variant: str) -> Arm:
        """The arm of any settings, by what they change, such as `{"model.fusion": "gate"}`; `study` and `variant` name it."""
        settings = self.settings.replace(**changes)
        folder = self.run / "models" / training_key(settings, seed, self.catalog)
        return Arm(study, variant, seed, settings, folder)

    def arms(self, study: str, variants: Iterable[str] | None = None, seeds: Iterable[int] | None = None) -> list[Arm]:
        """All arms of a study, seeds within variants."""
        variants = self.variants(study) if variants is None else tuple(variants)
        seeds = self.settings.seeds if seeds is None else tuple(seeds)
        return [self.arm(study, variant, seed) for variant in variants for seed in seeds]

    def train(self, arms: Sequence[Arm]) -> None:
        """Train, index and score the arms that are not done yet, several at a time, each on its own share of the cores.

        Processes that were started together (`torchrun`) train each arm together instead, one arm after the other.
        With `MAKELIB_CLUSTER`, the address of a Dask scheduler, that cluster's workers train them (`makelib.study.cluster`).
        An arm that fails does not stop the others; at the end `UserError` names all that failed. An interrupt ends the
        workers of this machine at once and is `Stopped`, which says what is kept. Of two notebooks or commands that train in one
        run, one works; the other waits, and finds what the first has trained.
        """
        if all(arm.done for arm in arms):
            return
        cluster = os.environ.get("MAKELIB_CLUSTER", "")
        workers = self.settings.ablation.workers or max(1, (os.cpu_count() or 1))
        # by the setting, not by how many arms are left: sums depend on the number of threads, and an arm that is trained
        # again alone must give the same numbers
        threads = max(1, (os.cpu_count() or 1) // workers)
        first = os.environ.get("RANK", "0") == "0"  # of those that were started together one has the key
        try:
            with alone(self.run / "models") if first else contextlib.nullcontext():
                todo = list({arm.folder: arm for arm in arms if not arm.done}.values())
                if not todo:
                    return
                self._share(todo)
                if int(os.environ.get("WORLD_SIZE", 1)) > 1:
                    return self._together(todo)
                failures = self._train(todo, min(workers, len(todo)), threads, cluster)
        except KeyboardInterrupt:
            raise Stopped(
                f"Stopped: {sum(arm.done for arm in arms)} of {len(arms)} models are trained and kept, the others go on from "
                "their last checkpoints. To go on, run the cell (or the command) again."
            ) from None
        if failures:
            lines = "; ".join(f"{label}: {reason}" for label, reason in failures.items())
            raise UserError(f"{len(failures)} of {len(todo)} arms failed, the others are kept. {lines}")

    def _share(self, todo: Sequence[Arm]) -> None:
        """What arms share is made once, before workers read it."""
        for settings in {(arm.settings.model, arm.settings.keywords): arm.settings for arm in todo}.values():
            Batches(self.catalog, tokenizer_for(self.catalog, settings), settings, 0)  # its tables and photographs
            if settings.model.fusion != "title":
                self.status("teaching the image encoder to see, and showing it every photograph, once for all arms")
                pictures(self.catalog, untrained(self.catalog, settings))

    def _train(self, todo: Sequence[Arm], workers: int, threads: int, cluster: str) -> dict[str, str]:
        """Arms in worker processes, here or on a cluster, behind a bar; label -> reason of those that failed."""
        steps = sum(arm.settings.training.steps + arm.settings.training.finetune_steps for arm in todo)
        what = f"{len(todo)} arm{'s' * (len(todo) != 1)}, {'on ' + cluster if cluster else f'{workers} at a time'}"
        job = functools.partial(run_there, threads) if cluster else run_arm
        workers_of = cluster_pool(cluster) if cluster else worker_pool(workers, threads)
        failures, began, before = {}, time.time(), sum(steps_of(arm.folder) for arm in todo)
        with progress(description=what, total=steps, unit="step") as bar, workers_of as pool:
            with deaf_to_interrupts():
                catalogue = str(self.catalog.folder.resolve())
                futures = {
                    pool.submit(
                        job, arm.label, to_dict(arm.settings), catalogue, arm.seed, str(arm.folder.resolve())
                    ): arm
                    for arm in todo
                }
            bar.initial = bar.n = before
            pending = set(futures)
            while pending:
                finished, pending = concurrent.futures.wait(pending, timeout=1.0)
                for future in finished:
                    if error := future.exception():
                        failures[futures[future].label] = f"{type(error).__name__}: {error}"
                taken = {arm.label: steps_of(arm.folder) for arm in todo}
                total = sum(taken.values())
                if total != before == bar.n:  # the estimate of the rest counts from the first step
                    bar.unpause()
                ends = "indexing and judging" if pending and total == steps else ""
                doing = "loading torch, maps" if total == before else ends
                bar.set_description(f"{what}: {doing}" if doing else what, refresh=False)
                bar.update(total - bar.n)
                waited = sorted(futures[future].label for future in pending)
                running = ", ".join(f"{label} at step {taken[label]}" for label in waited if taken[label]) or doing
                done, passed = f"{len(todo) - len(pending)}/{len(todo)} arms trained", time.time() - began
                if before < total < steps:
                    done += f", about {passed * (steps - total) / (total - before) / 60 + 0.5:.0f} min to go"
                self.status(f"{done} ({running})" if running else done)
        return failures

    def _together(self, todo: Sequence[Arm]) -> None:
        """Arms in this process, which is one of several: it dies with its parent and its peers, as a worker of its own would not."""
        for arm in todo:
            total = arm.settings.training.steps + arm.settings.training.finetune_steps
            with progress(description=arm.label, total=total, unit="step") as bar:
                run_arm(
                    arm.label, to_dict(arm.settings), str(self.catalog.folder), arm.seed, str(arm.folder),
                    on_step=lambda taken, bar=bar: bar.update(taken - bar.n),
                )  # fmt: skip

    def status(self, line: str) -> None:
        """Leave a line for whoever watches the run from outside (the headless runner shows it in the terminal)."""
        (self.run / ".progress").write_text(line + "\n", encoding="utf-8")

    def retriever(self, variant: str = "full", seed: int | None = None, study: str = "make") -> Retriever:
        """The trained model of an arm with its index, trained first if it is not yet."""
        arm = self.arm(study, variant, self.settings.seeds[0] if seed is None else seed)
        self.train([arm])
        return Retriever.open(arm.folder, self.catalog)

    # -- results --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def test_rows(self) -> np.ndarray:
        """Rows of the test queries that are judged, the same for every arm."""
        return queries_of(self.catalog, self.settings)

    @functools.cached_property
    def segments(self) -> pd.DataFrame:
        return segments(self.catalog, self.test_rows)

    def per_query(self, study: str, variants: Iterable[str] | None = None) -> dict[str, dict[int, pd.DataFrame]]:
        """Per-query scores of test queries: variant -> seed -> table. Raises `UserError` that names arms that did not run."""
        arms = self.arms(study, variants)
        if missing := [arm.label for arm in arms if not arm.done]:
            raise UserError(f"{study}: these arms were not run, so there is nothing to compare: {'; '.join(missing)}.")
        table: dict[str, dict[int, pd.DataFrame]] = {}
        for arm in arms:
            table.setdefault(arm.variant, {})[arm.seed] = pd.read_parquet(arm.folder / "per_query.parquet")
        return table

    def study(self, study: str, variants: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Run a study: train what is missing, judge, compare; result rows as in `summary.json`, also written to
        `<run>/results/<study>.json`, and what the arms cost to `<run>/tables`. Beside the trained arms stand `untrained`, and
        `late_fusion` of `title` and `image`."""
        rows = self._compared(study, variants)
        self.write(study, rows)
        with atomic_file(self.run / "tables" / f"costs {study}.csv") as draft:
            self.costs(study, variants).to_csv(draft)
        return rows

    def sweep(self, name: str) -> list[dict[str, Any]]:
        """Run a sweep of `SWEEPS`: its variants at each value of one setting, with result rows as `study` has them, of study
        `name` and with the value in `value` and in the variants' names. Arms that a study trained are used, too."""
        setting, values, study, variants = SWEEPS[name]
        if setting.startswith("bazaar.") and not can_read(self.catalog):
            raise UserError(f"{name} sweeps {setting}, which only the generated world has; use --catalog bazaar.")
        rows = []
        for value in values:
            settings = self.settings.replace(**{setting: value})
            catalog = open_catalog(self.catalog.name, settings) if setting.startswith("bazaar.") else self.catalog
            run = self.run  # but arms of another world are kept apart from those that are compared here
            if catalog.fingerprint != self.catalog.fingerprint:
                run = self.run / "worlds" / f"{name} {value:g}"
                run.mkdir(parents=True, exist_ok=True)
            told = len(value) if isinstance(value, tuple) else value
            for row in Experiment(run, settings, catalog)._compared(study, variants):
                named = {key: f"{row[key]} ({name} {told:g})" for key in ("variant", "reference") if row[key]}
                rows.append(row | named | {"study": name, "value": told})
        self.write(name, rows)
        return rows

    def _compared(self, study: str, variants: Iterable[str] | None) -> list[dict[str, Any]]:
        self.train(self.arms(study, variants))
        scores = self.per_query(study, variants)
        if {"title", "image"} <= set(scores):
            scores["late_fusion"] = {seed: self._late_fusion(study, seed) for seed in self.settings.seeds}
        if study == "modal_bounds" and self.catalog.truth is not None:
            scores["oracle_weights"] = {
                seed: self._scored(oracle_run(self.retriever("global", seed, study), self.test_rows, self._depth)[0])
                for seed in self.settings.seeds
            }
        for name, (variant, reference) in GAINS.get(study, {}).items():
            scores[name] = {seed: gain(scores[variant][seed], scores[reference][seed]) for seed in self.settings.seeds}
        scores |= {name: dict.fromkeys(self.settings.seeds, table) for name, table in self.untrained.items()}
        scores |= self.peers
        references = [pair for pair in REFERENCES[study] if set(pair) <= set(scores)]
        whole = next((name for name in ("full", "both", "adaptive") if name in scores), None)
        references += [(whole, name) for name in self.peers if whole]
        return result_rows(study, scores, references, self.segments, self.settings.evaluation)

    @functools.cached_property
    def untrained(self) -> dict[str, pd.DataFrame]:
        """Scores of rankings that nothing was trained for: BM25 on titles and, in the generated world, the readers. Kept."""
        runs = {"bm25": bm25_run}
        if can_read(self.catalog):
            runs |= {name: functools.partial(reader_run, name=name) for name in READERS}
        code = code_version(("study/baselines.py", "study/readers.py"))

        def made(name: str) -> tuple[pd.DataFrame, dict[str, float]]:
            began = time.time()
            scores = self._scored(runs[name](self.catalog, self.test_rows, self._depth)[0])
            return scores, {"seconds": time.time() - began}

        return {
            name: kept(
                self.run,
                fingerprint(name, self.catalog.fingerprint, scoring_key(self.settings), code),
                name,
                None,
                functools.partial(made, name),
            )
            for name in runs
        }

    @functools.cached_property
    def peers(self) -> dict[str, dict[int, pd.DataFrame]]:
        """Scores of the pretrained encoders that `ablation.peers` names: line -> seed -> table; see `makelib.study.peers`."""
        return peer_lines(self.run, self.catalog, self.settings, self.test_rows) if self.settings.ablation.peers else {}

    def _late_fusion(self, study: str, seed: int) -> pd.DataFrame:
        """Scores of the rankings of `title` and `image`, of that seed, fused."""
        folders = [self.arm(study, variant, seed).folder for variant in ("title", "image")]
        runs = [np.load(folder / "hits.npz")["rows"] for folder in folders]
        return self._scored(fused_run(runs, len(self.catalog), self._depth)[0])

    def _scored(self, found: np.ndarray) -> pd.DataFrame:
        return evaluate(self.catalog, self.test_rows, found, self.settings.evaluation)

    @property
    def _depth(self) -> int:
        return min(max(*self.settings.evaluation.cutoffs, 10), len(self.catalog))

    def adjust(self) -> list[dict[str, Any]]:
        """All result rows of the run, with the p values of the planned comparisons (docs/method.md) adjusted together (Holm); those that
        did not run count as p = 1."""
        studies = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((self.run / "results").glob("*.json"))
        }
        rows = [row for study in studies.values() for row in study]
        adjust(rows, PLANNED)
        for study, of_study in studies.items():
            self.write(study, of_study)
        return rows

    def write(self, study: str, rows: list[dict[str, Any]]) -> None:
        with atomic_file(self.run / "results" / f"{study}.json") as draft:
            draft.write_text(json.dumps(rows), encoding="utf-8")

    def curves(self, study: str, variants: Iterable[str] | None = None) -> pd.DataFrame:
        """Training curves of all done arms of a study, with columns `variant` and `seed`."""
        tables = [
            pd.read_parquet(arm.folder / "curves.parquet").assign(variant=arm.variant, seed=arm.seed)
            for arm in self.arms(study, variants)
            if arm.done
        ]
        return pd.concat(tables, ignore_index=True)

    def costs(self, study: str, variants: Iterable[str] | None = None) -> pd.DataFrame:
        """What every rival of a study costs, lines beside the arms included: parameters, operations to encode a product,
        seconds (mean over seeds), and `trials`, how many settings a search on validation queries tried for it."""
        arms = [arm for arm in self.arms(study, variants) if arm.done]
        notes = [
            json.loads((arm.folder / "arm.json").read_text(encoding="utf-8"))
            | {"variant": arm.variant, "trials": self._trials.get(arm.settings.model.fusion, 0)}
            for arm in arms
        ]
        lines = lines_of(self.run)
        notes += [
            note_of(folder) | {"variant": name, "trials": 0}
            for name in (*self.peers, *self.untrained)
            for folder in lines[name].values()
        ]
        columns = ["variant", "parameters", "megaflops_per_product", "seconds", "trials"]
        return pd.DataFrame(notes)[columns].groupby("variant", sort=False).mean()

    @property
    def _trials(self) -> dict[str, int]:
        """Settings that `makelib.study.tuning` tried for each fusion in this run."""
        file = self.run / "tables" / "tuning.csv"
        return pd.read_csv(file)["fusion"].value_counts().to_dict() if file.is_file() else {}


def run_folder(preset_name: str, catalog: str) -> Path:
    """Where a run lands that names no folder: `reports/<preset>`, and the catalogue's name where it is not `bazaar`."""
    own = "" if catalog == "bazaar" else f"-{Path(catalog.removeprefix('hub:')).name}"
    return Path("reports") / f"{preset_name}{own}"


def settings_of(preset_name: str, catalog: str, seeds: int, overrides: Mapping[str, Any] | None) -> Settings:
    """The settings of a run: the preset, what the catalogue's name says, the number of seeds (0: the preset's), overrides."""
    settings = settings_for(catalog, preset(preset_name).replace(**(overrides or {})))
    if seeds < 0:
        raise UserError(f"seeds must be 0 (as the preset says) or a positive number, not {seeds}.")
    return dataclasses.replace(settings, seeds=tuple(range(seeds))) if seeds else settings


def check_folder(run: Path, settings: Settings, catalogue: str | None = None) -> None:
    """Refuse a folder that holds something else than a run, or a run with models or results of other settings. More seeds than
    before, or other peers beside, are no other settings: all that was trained and judged stays, and the run goes on.

    Args:
        run: the folder, which need not exist.
        settings: those of the experiment that wants to live there.
        catalogue: fingerprint of its catalogue; None does not compare it.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; name a folder for the run, such as {run}-run.")
    if not run.is_dir() or not any(run.iterdir()):
        return
    if not any((run / name).is_file() for name in ("settings.yaml", "summary.json", ".progress")):
        raise UserError(f"{run.resolve()} holds other files and no run; choose another folder, such as reports/mine.")
    if not (run / "settings.yaml").is_file() or not any(run.glob("models/*/settings.yaml")):
        return
    was, facts = read_yaml(run / "settings.yaml"), {}
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads((run / "catalogue.json").read_text(encoding="utf-8"))
    same = settings.replace(**{f"ablation.{name}": getattr(was.ablation, name) for name in ("peers", "peer_modes")})
    if was != (dataclasses.replace(same, seeds=was.seeds) if set(was.seeds) <= set(settings.seeds) else same):
        changed = list(differences(was, settings).items())
        said = ", ".join(f"{name} {value!r}" for name, value in changed[:3]) + ", …" * (len(changed) > 3)
        own = {
            name: value
            for name, value in differences(preset(was.name), was).items()
            if name not in ("seeds", "bazaar.language")
        }
        back = f"preset {was.name!r}, {len(was.seeds)} seeds" + (f", overrides {own}" if own else "")
    elif catalogue is not None and facts.get("fingerprint", catalogue) != catalogue:
        said, back = f"catalogue {catalogue}", f"the catalogue {facts['name']} ({facts['fingerprint']})"
    else:
        return
    raise UserError(
        f"{run} holds a run of other settings (here: {said}) and stays as it is. Name another folder, such as {run}-2 "
        f"(`run` in a notebook, --run or --out in a terminal), or go back to its own settings: {back}."
    )


def find_model(run: Path | str, variant: str | None = None) -> Path:
    """The folder of a trained arm: `run` is one itself, or a run folder (or its name under `reports/`).

    Without a variant the fullest one that was trained is taken: `both`, else `adaptive`, else any.
    """
    candidates = [Path(run), Path("reports") / str(run)]
    for folder in candidates:
        if (folder / "retriever.json").is_file():
            return folder
        arms = sorted(path.parent for path in folder.glob("models/*/arm.json"))
        labels = {arm: json.loads((arm / "arm.json").read_text())["label"] for arm in arms}
        order = (variant,) if variant else ("full", "both", "adaptive", "none")
        for wanted in order:
            for arm, label in labels.items():
                if label.split(",")[0] == wanted:
                    return arm
        if variant and arms:
            known = sorted({label.split(",")[0] for label in labels.values()})
            raise UserError(f"{folder} has no trained variant {variant!r}; it has {', '.join(known)}.")
        if arms:
            return arms[0]
    raise UserError(
        f"There is no trained model under {run} or reports/{run}. Make one with `make reproduce` or `python -m makelib train`."
    )
