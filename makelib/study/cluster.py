"""The grid on many machines: arms as jobs of an existing Dask cluster, whose machines see the run and the catalogue under the same paths.

Dask and not Ray, for it is the thinner: pure Python, and its client is an executor as the standard library has them, so that the
loop of `Experiment.train` is the same. Arms meet in the run's folder; an arm whose worker is lost goes to another, which goes on from
the arm's last checkpoint.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from makelib.data.catalog import Catalog
from makelib.model.training import training_key
from makelib.runtime import UserError
from makelib.settings import from_dict
from makelib.study.arms import run_arm, start_worker

#: arms draw from random numbers of their process: a worker with several threads takes one arm at a time
_ALONE = threading.Lock()
#: seconds in which a scheduler has to answer
PATIENCE = 20


@contextlib.contextmanager
def cluster_pool(address: str) -> Iterator[concurrent.futures.Executor]:
    """The workers of the scheduler at `address`, such as `tcp://10.0.0.5:8786`, for `run_there`. Whoever leaves by an exception
    takes back what waits; an arm that a worker has begun is finished and kept.

    Raises `UserError` where the extra is missing, or nobody answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UserError("A cluster needs Dask; install it with `pip install 'makelib[cluster]'`.") from None
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"No Dask scheduler answers at {address!r} ({type(error).__name__}). Start one with `dask scheduler`, workers with "
            "`dask worker <address> --nthreads 1`, and give its address as tcp://host:8786."
        ) from error
    with client:
        pool = client.get_executor(pure=False)
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False)
            raise


def run_there(threads: int, label: str, tree: dict[str, Any], catalogue: str, seed: int, folder: str) -> None:
    """`run_arm` on a worker, on so many threads. Raises `UserError` where the worker sees another catalogue or has other code: its
    arm would land elsewhere."""
    with _ALONE:
        start_worker(threads)
        if training_key(from_dict(tree), seed, Catalog.open(catalogue)) != Path(folder).name:
            raise UserError("this worker has another version of makelib; install the same on all machines.")
        run_arm(label, tree, catalogue, seed, folder)
