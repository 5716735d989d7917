"""What the ablation explorer computes for a state, from scores that the arms left behind; no widget, and nothing is trained."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from makelib.runtime import UserError
from makelib.search.retriever import Retriever
from makelib.settings import Settings, read_yaml
from makelib.study.arms import Arm
from makelib.study.experiment import Experiment
from makelib.study.lines import lines_of
from makelib.study.statistics import holm, result_rows
from makelib.study.studies import REFERENCES, STUDIES
from makelib.workbook.ablations import html as draw
from makelib.workbook.ablations.state import EVERYTHING, State, changed, names, parts_of, written
from makelib.workbook.explorer.state import State as Search
from makelib.workbook.explorer.views import Views as SearchViews
from makelib.workbook.explorer.views import once

#: variants that are shown without being asked for
MOST = 12
#: wins and losses that are offered as buttons
TILES = 6
#: products of each ranking beside one another
K = 10


class Views:
    """Trained arms of a run, asked by `State` and answering in rows or HTML.

    Args:
        source: a run (its folder, or its name under `reports/`) or an `Experiment`.
    """

    def __init__(self, source: Path | str | Experiment) -> None:
        self.experiment = source if isinstance(source, Experiment) else Experiment.reopen(source)
        self.segments = self.experiment.segments
        self.open = once(lambda folder: Retriever.open(folder, self.experiment.catalog))
        self._pair = once(
            lambda names, folders: SearchViews(
                {name: self.open(folder) for name, folder in zip(names, folders, strict=True)}
            )
        )
        self._settings = once(lambda folder: read_yaml(folder / "settings.yaml"))
        self._scores = once(lambda folder: pd.read_parquet(folder / "per_query.parquet"))
        self.reload()

    # -- what there is --------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Look again which arms are trained. Arms of other queries (another catalogue, another number of them) stay out;
        of equal settings trained by several states of the code, the newest counts."""
        ids = self.segments.index.to_numpy()
        #: key of settings -> seed -> folder
        self.arms: dict[tuple, dict[int, Path]] = {}
        self.settings_of: dict[tuple, Settings] = {}
        self.left_out = 0
        notes = sorted((self.experiment.run / "models").glob("*/arm.json"), key=lambda path: path.stat().st_mtime)
        for note in notes:
            try:
                settings = self._settings(note.parent)
                if not np.array_equal(self._scores(note.parent)["query_id"], ids):
                    raise UserError("judged on other queries")
            except (UserError, OSError):  # settings of another version of this code
                self.left_out += 1
                continue
            key = parts_of(settings)
            self.settings_of[key] = settings
            self.arms.setdefault(key, {})[json.loads(note.read_text(encoding="utf-8"))["seed"]] = note.parent
        base, named = self.experiment.settings, {}
        #: study -> variant -> key of its settings, trained ones only
        self.studies: dict[str, dict[str, tuple]] = {}
        for study in ("make", *(study for study in STUDIES if study != "make")):
            keys = {name: parts_of(base.replace(**changes)) for name, changes in STUDIES[study].items()}
            found = {name: key for name, key in keys.items() if key in self.arms}
            if len(found) > 1:
                self.studies[study] = found
            for name, key in found.items():
                named.setdefault(key, name if name not in named.values() else f"{name} ({study})")
        for key in self.arms:
            named.setdefault(key, written(changed(base, self.settings_of[key])) or "as set")
        self.studies[EVERYTHING] = {name: key for key, name in named.items() if key in self.arms}
        if len(self.studies[EVERYTHING]) < 2:
            raise UserError(
                f"{self.experiment.run} holds fewer than two trained arms that can be compared; run notebook 03, or "
                "`python -m makelib ablate`."
            )
        self._add_lines()
        self.rows.cache_clear()

    def _add_lines(self) -> None:
        """What stands beside the arms (BM25, readers, pretrained encoders) may be chosen in every study, as the run kept it."""
        #: names of variants that are no arm, so have scores and no model
        self.lines: list[str] = []
        seeds = {seed for by_seed in self.arms.values() for seed in by_seed}
        for name, by_seed in lines_of(self.experiment.run).items():
            folders = dict.fromkeys(seeds, by_seed[None]) if None in by_seed else by_seed
            alike = all(
                np.array_equal(self._scores(folder)["query_id"], self.segments.index) for folder in folders.values()
            )
            if alike and name not in self.studies[EVERYTHING]:
                self.lines.append(name)
                self.arms["line", name] = folders
                for variants in self.studies.values():
                    variants[name] = ("line", name)

    @functools.cached_property
    def metrics(self) -> list[str]:
        """Metrics that every arm has scores of."""
        folder = next(iter(next(iter(self.arms.values())).values()))
        return [name for name in self._scores(folder) if "@" in name and not name.endswith("ceiling")]

    def seeds(self, study: str, variants: Iterable[str]) -> list[int]:
        """Seeds with which all of these variants are trained."""
        found = [set(self.arms[self.studies[study][name]]) for name in variants]
        return sorted(set.intersection(*found)) if found else []

    def check(self, state: State) -> State:
        """The state with what it leaves open filled in. Raises `UserError` where it names what is not here."""
        study = state.study or next(
            (name for name in ("modal_adaptation", *self.studies) if name in self.studies), EVERYTHING
        )
        if study not in self.studies:
            raise UserError(
                f"There is no study {study!r} with two trained variants; there is {', '.join(self.studies)}."
            )
        there = list(self.studies[study])
        for name in filter(None, (*state.variants, state.reference, state.against)):
            if name not in there:
                raise UserError(f"{name!r} is not trained in {study}; there is {', '.join(there)}.")
        if state.metric not in self.metrics:
            raise UserError(f"There is no metric {state.metric!r}; choose one of: {', '.join(self.metrics)}.")
        if state.segment not in self.segments:
            raise UserError(f"There is no segment {state.segment!r}; choose one of: {', '.join(self.segments)}.")
        pairs = [pair for pair in REFERENCES.get(study, ()) if set(pair) <= set(there)]
        usual = collections.Counter(reference for _, reference in pairs).most_common(1)
        reference = state.reference or (usual[0][0] if usual else there[0])
        variants = state.variants or tuple(name for name in there if name not in self.lines)[:MOST]
        variants = tuple(name for name in there if name in variants or name == reference)
        if len(variants) < 2:
            raise UserError("Choose at least one variant beside the reference.")
        others = [name for name in variants if name != reference]
        first = next((variant for variant, _ in pairs if variant in others), others[0])
        against = state.against if state.against in others else first
        common = self.seeds(study, variants)
        seeds = tuple(seed for seed in common if not state.seeds or seed in state.seeds)
        if not seeds:
            raise UserError(
                f"No seed is trained for all of {', '.join(variants)}"
                + (f" among {', '.join(map(str, state.seeds))}." if common else ".")
            )
        return dataclasses.replace(
            state, study=study, variants=variants, reference=reference, against=against, seeds=seeds
        )

    # -- numbers --------------------------------------------------------------------------------------------------

    def scores(self, state: State, variants: Iterable[str]) -> dict[str, dict[int, pd.DataFrame]]:
        """Per-query scores on the state's metric: variant -> seed -> table."""
        columns = ["query_id", "intent", state.metric]
        return {
            name: {
                seed: self._scores(folder)[columns]
                for seed, folder in self.arms[self.studies[state.study][name]].items()
                if seed in state.seeds
            }
            for name in variants
        }

    @functools.lru_cache(maxsize=512)  # noqa: B019  lives as long as the views do
    def rows(self, state: State) -> list[dict[str, Any]]:
        """Result rows of a checked state, those of `summary.json`; `p_value_holm` is corrected over what is shown."""
        pairs = [(name, state.reference) for name in state.variants if name != state.reference]
        return self._judged(self.scores(state, state.variants), pairs, state, [state.segment])

    def by_segment(self, state: State) -> list[dict[str, Any]]:
        """The one comparison of a checked state, `against` and `reference`, in every segment; p values uncorrected."""
        scores = self.scores(state, (state.against, state.reference))
        return self._judged(scores, [(state.against, state.reference)], state, list(self.segments), correct=False)

    def _judged(
        self,
        scores: Mapping[str, Mapping[int, pd.DataFrame]],
        pairs: Sequence[tuple[str, str]],
        state: State,
        segments: list[str],
        correct: bool = True,
    ) -> list[dict[str, Any]]:
        judge = dataclasses.replace(self.experiment.settings.evaluation, alpha=round(1 - state.level, 6))
        rows = result_rows(state.study, scores, pairs, self.segments[segments], judge)
        tested = [row for row in rows if row["reference"] is not None]
        if correct:
            for row, p_value in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
                row["p_value_holm"] = float(p_value)
        return rows

    def per_query(self, state: State) -> pd.DataFrame:
        """Every query of the segment by how much `against` wins it, most first; `query_id, query, against, reference,
        difference`, means over seeds."""
        scores = self.scores(state, (state.against, state.reference))
        means = [
            np.mean([frame[state.metric].to_numpy(np.float64) for frame in scores[name].values()], axis=0)
            for name in (state.against, state.reference)
        ]
        rows = self.experiment.test_rows
        table = pd.DataFrame(
            {
                "query_id": self.segments.index,
                "query": self.experiment.catalog.queries["query"].to_numpy()[rows],
                "against": means[0],
                "reference": means[1],
                "difference": means[0] - means[1],
            }
        )
        kept = table[self.segments[state.segment].to_numpy()].dropna()
        return kept.sort_values("difference", ascending=False, kind="stable", ignore_index=True)

    def sweep(self, state: State) -> tuple[list[dict[str, Any]], list[Any]]:
        """Rows of the arms that differ from `reference` in one setting only, by value, and the values that are not trained.

        Without values, those that are trained. The variant of a row is the value as it is written.
        """
        if state.setting not in names(self.experiment.settings):
            raise UserError(f"There is no setting {state.setting!r}; the box offers all that an arm may change.")
        base = self.base(state)
        part, _, field = state.setting.partition(".")
        trained = {
            getattr(getattr(settings, part), field): key
            for key, settings in self.settings_of.items()
            if parts_of(base.replace(**{state.setting: getattr(getattr(settings, part), field)})) == key
        }
        asked = [
            getattr(getattr(base.replace(**{state.setting: value}), part), field) for value in state.values
        ] or list(trained)
        values = [value for value in dict.fromkeys(asked) if value in trained]
        missing = [value for value in dict.fromkeys(asked) if value not in trained]
        if all(isinstance(value, int | float) for value in values):
            values.sort()
        if not values:
            return [], missing
        common = sorted(set.intersection(*(set(self.arms[trained[value]]) for value in values)))
        if not common:
            raise UserError(f"No seed is trained for all of these values of {state.setting}.")
        columns = ["query_id", "intent", state.metric]
        scores = {
            str(value): {seed: self._scores(self.arms[trained[value]][seed])[columns] for seed in common}
            for value in values
        }
        own = str(getattr(getattr(base, part), field))
        pairs = [(name, own) for name in scores if name != own and own in scores]
        return self._judged(scores, pairs, dataclasses.replace(state, study="sweep"), [state.segment]), missing

    def base(self, state: State) -> Settings:
        """Settings of the reference, on top of which a sweep changes one. Raises `UserError` where it is no arm."""
        if state.reference in self.lines:
            raise UserError(f"{state.reference} has no settings to sweep; choose a trained variant as the reference.")
        return self.settings_of[self.studies[state.study][state.reference]]

    def estimate(self, arms: Iterable[Arm]) -> float | None:
        """Seconds that arms will take: those of the arms that ran, per step and pair, of the same fusion where one did."""
        ran = []
        for key, settings in self.settings_of.items():
            for folder in self.arms[key].values():
                note = json.loads((folder / "arm.json").read_text(encoding="utf-8"))
                ran.append((settings.model.fusion, note["seconds"] / _work(settings)))
        if not ran:
            return None
        total = 0.0
        for arm in arms:
            alike = [rate for fusion, rate in ran if fusion == arm.settings.model.fusion]
            total += float(np.median(alike or [rate for _, rate in ran])) * _work(arm.settings)
        return total

    # -- views ----------------------------------------------------------------------------------------------------

    def board(self, state: State) -> str:
        """Verdict, forest and table of a checked state."""
        return draw.board(self.rows(state), state, self.experiment.catalog.name, self.left_out)

    def queries(self, state: State) -> str:
        """All queries as bars, sorted by their difference."""
        return draw.queries(self.per_query(state), state)

    def where(self, state: State) -> str:
        """The comparison by segment."""
        return draw.where(self.by_segment(state), state)

    def searches(self, state: State) -> tuple[SearchViews, Search]:
        """The two models of a checked state, and the search that shows its query with both."""
        table = self.per_query(state)
        if not 1 <= state.place <= len(table):
            raise UserError(f"There is no place {state.place}; these are queries 1 to {len(table)}.")
        folders = tuple(
            self.arms[self.studies[state.study][name]][state.seeds[0]] for name in (state.against, state.reference)
        )
        views = self._pair((state.against, state.reference), folders)
        asked = Search(query=table["query"].iloc[state.place - 1], variant=state.against, compare=state.reference, k=K)
        return views, asked

    def beside(self, state: State) -> str:
        """Both rankings of the chosen query, the query explorer's own view; an invitation where none is chosen."""
        if not state.place:
            return "<p>Choose a query to see both rankings side by side.</p>"
        if without := [name for name in (state.against, state.reference) if name in self.lines]:
            row = self.per_query(state).iloc[state.place - 1]
            return draw.query_line(row, state) + draw.no_model(without)
        views, asked = self.searches(state)
        row = self.per_query(state).iloc[state.place - 1]
        return draw.query_line(row, state) + views.versus(asked)

    def why(self, state: State) -> str:
        """Why the chosen product stands where it does, once for each variant."""
        if not (state.place and state.rank) or {state.against, state.reference} & set(self.lines):
            return ""
        views, asked = self.searches(state)
        hits = views.search(asked)
        if not 1 <= state.rank <= len(hits):
            raise UserError(f"There is no rank {state.rank}; there are ranks 1 to {len(hits)}.")
        chosen = dataclasses.replace(asked, selected=hits["product_id"].iloc[state.rank - 1])
        return "".join(
            draw.heading(f"Why, asked of {name}") + views.why(dataclasses.replace(chosen, variant=name, compare=None))
            for name in (state.against, state.reference)
        )

    def curve(self, state: State) -> str:
        """A sweep, drawn; what it still lacks, in words."""
        return draw.curve(*self.sweep(state), state) if state.setting else ""

    def twin(self, state: State) -> str:
        """What the widget shows first, without a widget: the board, where it differs, and the query that it wins by most
        (or the one that the state names)."""
        state = self.check(state)
        parts = [self.board(state), draw.heading(f"Where {state.against} differs from {state.reference}")]
        parts += [self.where(state), draw.heading("Query by query"), self.queries(state)]
        if len(self.per_query(state)):
            state = dataclasses.replace(state, place=state.place or 1)
            parts += [self.beside(state), self.why(state)]
        said = (
            "In JupyterLab, study, variants, reference, metric, segment, seeds and level can be chosen here, any query opened, "
            "and variants that are missing trained."
        )
        return draw.page(*parts, f"<p>{said}</p>")


def _work(settings: Settings) -> int:
    """Pairs that a training sees."""
    return max(1, (settings.training.steps + settings.training.finetune_steps) * settings.training.batch_size)
