"""Several processes are one: the real model, batch and objectives on two gloo ranks against one process.

Both ranks are started once, do every job in turn and leave what they saw; one process then does the same jobs.

Whole trainings are compared in double precision. Two ranks add in another order than one, and in single precision training
magnifies that: within ten steps one process, too, is off by 1e-3 in its losses where the last bit of one layer's weights is.
What single precision can show, the first step does.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent / "model"))
from test_training import tiny, toy  # the catalogue whose colours are seen and whose brands are told

from makelib.data.catalog import Catalog
from makelib.model.training import train
from makelib.ranks import accelerator
from makelib.runtime import UserError

EVERYTHING = {
    "training.steps": 20, "training.finetune_steps": 2, "training.evaluations": 3, "training.patience": 4,
    "training.checkpoint_every": 4, "training.learning_rate": 1e-3, "training.word_dropout": 0.15,
    "model.summary_dropout": 0.0,  # which entries are hidden each process draws for itself
    "training.augment_images": True, "training.image_warmup": 0,
    "objectives.title_image_matching": 0.1, "objectives.query_product_matching": 0.1, "objectives.masked_language": 0.1,
}  # fmt: skip


def job(folder, name, stop=None, dtype=torch.float64, **changes):
    """Train to the end, or stop after some steps; leaves the model's weights beside the curves."""
    torch.set_default_dtype(dtype)
    try:
        model = train(
            Catalog.open(folder / "catalogue"),
            tiny(**EVERYTHING | changes),
            0,
            folder / name,
            on_step=lambda *_: None,
            stop_after=stop,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / f"{name}-{os.environ.get('RANK', 'alone')}.safetensors")


#: gradient caching needs a tower without batch norms that learn
FROZEN = {"model.image_frozen": True, "training.steps": 8, "training.patience": 0}


def first_step(folder, name):
    job(folder, name, dtype=torch.float32, **{"training.steps": 1, "training.finetune_steps": 0})


def rank(number, port, folder):
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    job(folder, "together")
    job(folder, "one goes on", stop=12)
    job(folder, "two go on")
    first_step(folder, "first step together")
    job(folder, "together in pieces", **FROZEN, **{"training.chunk": 5})

    def killed(stage, step, steps):
        if number == 1 and step == 3:
            (folder / "killed").write_text(str(time.time()))
            os._exit(9)

    try:
        train(Catalog.open(folder / "catalogue"), tiny(**EVERYTHING), 0, folder / "killed run", on_step=killed)
    except UserError as error:
        (folder / "survivor.json").write_text(json.dumps([time.time(), str(error)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    toy(folder / "catalogue")
    torch.set_num_threads(1)
    job(folder, "alone")
    job(folder, "two go on", stop=12)
    first_step(folder, "first step")
    job(folder, "alone, frozen", **FROZEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=rank, args=(number, port, folder)) for number in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=270)
        process.kill()
    job(folder, "one goes on")
    return folder


def weights(folder, name):
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def curves(folder, name):
    return pd.read_parquet(folder / name / "curves.parquet").drop(columns=["triples per second", "waited"])


@pytest.mark.parametrize("name", ["together", "one goes on", "two go on"])
def test_losses_gradients_and_decisions_are_those_of_one(folder, name):
    """Through pre-training with every objective, early stopping, mined negatives and fine-tuning; what is logged is float32."""
    pd.testing.assert_frame_equal(curves(folder, name), curves(folder, "alone"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["together-0", "one goes on-alone", "two go on-0"])
def test_weights_are_those_of_one(folder, name):
    ours, theirs = weights(folder, name), weights(folder, "alone-alone")
    assert {key for key in ours if not torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-9)} == set()


def test_the_first_step_is_that_of_one_in_single_precision(folder):
    pd.testing.assert_frame_equal(
        curves(folder, "first step together"), curves(folder, "first step"), rtol=1e-6, atol=1e-6
    )


def test_two_ranks_in_pieces_are_one_with_the_whole_batch(folder):
    pieces, whole = (curves(folder, name) for name in ("together in pieces", "alone, frozen"))
    pd.testing.assert_frame_equal(pieces, whole, rtol=1e-6, atol=1e-6)
    ours, theirs = weights(folder, "together in pieces-0"), weights(folder, "alone, frozen-alone")
    assert {key for key in ours if not torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-5)} == set()


def test_both_ranks_return_one_model(folder):
    one, other = weights(folder, "together-0"), weights(folder, "together-1")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_killed_rank_ends_the_other_with_one_line(folder):
    ended, said = json.loads((folder / "survivor.json").read_text())
    assert ended - float((folder / "killed").read_text()) < 60
    assert "Another process of this training ended" in said
    assert "\n" not in said


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("makelib.ranks.Accelerator", lambda **_: type("Alone", (), {"num_processes": 1}))
    with pytest.raises(UserError, match=r"2 processes were started .* but 1 train together"):
        accelerator("fp32")


def test_torchrun_trains_one_arm_a_killed_rank_ends_it_and_one_process_goes_on(tmp_path):
    """The command itself: both into one folder, nobody left behind, one line, and the arm is finished by one process alone."""
    changes = {
        "training.steps": 200, "training.batch_size": 32, "training.image_warmup": 0, "training.checkpoint_every": 5,
        "bazaar.products": 200, "bazaar.queries": 120, "bazaar.clicks": 1200, "text.vocabulary": 600, "model.width": 32, "model.dim": 16,
        "model.image_size": 16,
    }  # fmt: skip
    words = ["train", "--preset", "smoke", "--variant", "mean", "--run", str(tmp_path / "run")]
    words += [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "makelib", *words]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with (tmp_path / "said").open("w+") as said:
        running = subprocess.Popen(launch, cwd=tmp_path, env=environment, stdout=said, stderr=said)
        while not [*tmp_path.glob("run/models/*/checkpoint")]:
            assert running.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        family = psutil.Process(running.pid).children(recursive=True)
        ranks = {process.environ().get("RANK"): process for process in family if "makelib" in process.cmdline()}
        ranks["1"].kill()
        assert running.wait(60) != 0
    lines = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("makelib:")]
    assert len(lines) == 1
    assert "Another process of this training ended" in lines[0]
    assert not psutil.wait_procs(family, timeout=10)[1]
    (folder,) = tmp_path.glob("run/models/*")
    begun = json.loads((folder / "checkpoint" / "state.json").read_text())["step"]
    assert 0 < begun < 200
    alone = subprocess.run(
        [sys.executable, "-m", "makelib", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.split() == [str(folder)]
    steps = pd.read_parquet(folder / "curves.parquet")["step"].tolist()
    assert steps == list(range(201))
    first = json.loads((folder / "live.jsonl").read_text().splitlines()[begun + 1])["step"]
    assert first == begun + 1
