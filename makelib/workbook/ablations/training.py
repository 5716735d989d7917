"""Training an arm that is missing while somebody looks on: in a process of its own, stopped and gone on with at will."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import pandas as pd

from makelib.settings import to_dict
from makelib.study.arms import LIVE, Arm, run_arm, start_worker
from makelib.study.experiment import Experiment

#: seconds between two looks at what a training wrote
POLL = 0.5


@dataclass
class Progress:
    """How far a queue of arms is: `state` is `training`, `done`, `stopped` or `failed` (then `error` says why)."""

    arms: Sequence[Arm]
    state: str = "training"
    error: str = ""
    began: float = field(default_factory=time.time)
    position: int = 0

    @property
    def arm(self) -> Arm:
        return self.arms[min(self.position, len(self.arms) - 1)]

    @property
    def steps(self) -> int:
        return self.arm.settings.training.steps + self.arm.settings.training.finetune_steps

    def curves(self) -> pd.DataFrame:
        """What the arm in work wrote so far: `step`, `loss`, now and then `validation Recall@100`."""
        return live_curves(self.arm)


def live_curves(arm: Arm) -> pd.DataFrame:
    """Steps that an arm took, as its training notes them; those that were taken twice count once."""
    try:
        lines = (arm.folder / LIVE).read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that is being written
            continue
    table = pd.DataFrame(rows, columns=["step", "loss", "validation Recall@100"])
    return table.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


class Training:
    """Arms, one after another. `told` is called with the `Progress` every half second and at the end, from a thread."""

    def __init__(self, experiment: Experiment, arms: Sequence[Arm], told: Callable[[Progress], None]) -> None:
        self.experiment, self.told = experiment, told
        self.progress = Progress([arm for arm in arms if not arm.done])
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the process; what its last checkpoint holds is kept."""
        self._stop.set()

    def _work(self) -> None:
        progress, context = self.progress, multiprocessing.get_context("spawn")
        for position, arm in enumerate(progress.arms):
            progress.position = position
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_run,
                args=(writer, arm.label, to_dict(arm.settings), str(self.experiment.catalog.folder.resolve()), arm.seed,
                      str(arm.folder.resolve())),
                daemon=True,
            )  # fmt: skip
            process.start()
            writer.close()
            while process.is_alive() and not self._stop.wait(POLL):
                self.told(progress)
            if process.is_alive():
                process.terminate()
            process.join()
            if not arm.done:
                progress.state = "stopped" if self._stop.is_set() else "failed"
                try:
                    progress.error = reader.recv() if reader.poll() else f"exit code {process.exitcode}"
                except EOFError:
                    progress.error = f"exit code {process.exitcode}"
                break
        else:
            progress.state = "done"
        self.told(progress)


def _run(writer: Connection, *arguments: Any) -> None:
    start_worker(1)
    try:
        run_arm(*arguments)
    except Exception as error:
        writer.send(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
