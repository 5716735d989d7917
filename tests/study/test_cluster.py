"""Arms on a cluster: a scheduler and two workers, each a process of its own, of which one is killed while it trains."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
from worlds import TINY

from makelib.__main__ import main
from makelib.runtime import UserError
from makelib.study.arms import steps_of
from makelib.study.experiment import Experiment

distributed = pytest.importorskip("distributed")

LONG = TINY | {
    "training.steps": 60, "training.image_warmup": 0, "training.checkpoint_every": 10, "model.image_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Experiment.open(folder / "run", "smoke", "bazaar", 1, LONG)


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Its address."""
    file = tmp_path_factory.mktemp("dask") / "scheduler.json"
    common = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.DEVNULL}
    words = ["--scheduler-file", str(file), "--no-dashboard"]
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", *words]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", *words]
    running = [subprocess.Popen(command, **common) for command in (scheduler, worker, worker)]
    while not file.is_file() and running[0].poll() is None:
        time.sleep(0.1)
    address = json.loads(file.read_text())["address"]
    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=120)
    yield address
    for process in running:
        process.kill()
        process.wait()


def test_a_lost_workers_arm_is_taken_up_by_another(experiment, scheduler, monkeypatch):
    arms, lost = experiment.arms("modal_adaptation", ["mean", "global"]), {}

    def kill():
        """A worker, when both have trained past a checkpoint."""
        with distributed.Client(scheduler, set_as_default=False) as client:
            pids = client.run(os.getpid)
            while min(steps_of(arm.folder) for arm in arms) < 15:
                time.sleep(0.02)
            lost["steps"] = [steps_of(arm.folder) for arm in arms]
            jobs = client.processing()
            victim = next(address for address in pids if jobs[address])
            os.kill(pids[victim], signal.SIGKILL)

    monkeypatch.setenv("MAKELIB_CLUSTER", scheduler)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    experiment.train(arms)
    killer.join(10)
    assert max(lost["steps"]) < 60
    assert [arm.done for arm in arms] == [True, True]
    assert (experiment.run / ".progress").read_text().startswith("2/2 arms trained")
    with distributed.Client(scheduler, set_as_default=False) as client:
        assert len(client.run(os.getpid)) == 1
    # both arms are what one machine makes of them
    monkeypatch.delenv("MAKELIB_CLUSTER")
    alone = dataclasses.replace(experiment, run=experiment.run.with_name("alone"))
    alone.run.mkdir()
    alone.train(alone.arms("modal_adaptation", ["mean", "global"]))
    for one, other in zip(arms, alone.arms("modal_adaptation", ["mean", "global"]), strict=True):
        scores = (pd.read_parquet(arm.folder / "per_query.parquet") for arm in (one, other))
        pd.testing.assert_frame_equal(*scores)


def test_a_worker_with_other_code_is_told_so(experiment, scheduler, monkeypatch):
    arm = experiment.arm("modal_adaptation", "title", 0)
    other = dataclasses.replace(arm, folder=arm.folder.with_name("another version"))
    monkeypatch.setenv("MAKELIB_CLUSTER", scheduler)
    with pytest.raises(UserError, match=r"title, seed 0: UserError: this worker has another version of makelib"):
        experiment.train([other])
    assert not (other.folder / "arm.json").exists()


def test_a_scheduler_that_does_not_answer_is_one_line(experiment, monkeypatch):
    monkeypatch.setattr("makelib.study.cluster.PATIENCE", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        monkeypatch.setenv("MAKELIB_CLUSTER", address)
        with pytest.raises(UserError, match=f"No Dask scheduler answers at '{address}'") as raised:
            experiment.train([experiment.arm("modal_adaptation", "title", 0)])
        assert "\n" not in str(raised.value)


def test_without_the_extra_it_says_what_to_install(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setenv("MAKELIB_CLUSTER", "tcp://127.0.0.1:8786")
    with pytest.raises(UserError, match=r"pip install 'makelib\[cluster\]'"):
        experiment.train([experiment.arm("modal_adaptation", "title", 0)])


def test_the_command_line_names_the_cluster(experiment, monkeypatch, capsys):
    monkeypatch.setenv("MAKELIB_CLUSTER", "")  # and back, after the command has set it
    monkeypatch.setattr("makelib.study.cluster.PATIENCE", 1)
    changes = [word for name, value in LONG.items() for word in ("--set", f"{name}={value}")]
    words = ["train", "--preset", "smoke", "--run", str(experiment.run.with_name("named")), "--variant", "title"]
    assert main([*words, "--cluster", "tcp://127.0.0.1:9", *changes]) == 2
    assert "No Dask scheduler answers at 'tcp://127.0.0.1:9'" in capsys.readouterr().err
