"""Several processes are one (`torchrun`; gloo on CPUs, NCCL on GPUs): what passes between them passes here.

Started alone there is one process, and everything below is the identity. Every process calls each function, in the same order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

from makelib.runtime import UserError


def place() -> tuple[int, int]:
    """Rank of this process and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share(count: int) -> slice:
    """The part of `count` rows that this process takes; in order of rank they are all rows."""
    rank, world = place()
    return slice(count * rank // world, count * (rank + 1) // world)


def accelerator(precision: str) -> Accelerator:
    """The processes that were started together, each on its device; `precision` as in `makelib.settings.Training`.

    Raises `UserError` where processes were started together but do not find each other: each would train alone.
    """
    on_gpu, threads = torch.cuda.is_available(), torch.get_num_threads()
    automatic = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "no"
    joined = Accelerator(
        mixed_precision={"auto": automatic, "fp32": "no"}.get(precision, precision),
        cpu=not on_gpu,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    torch.set_num_threads(threads)  # accelerate sets its own
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != joined.num_processes:
        raise UserError(
            f"{started} processes were started (WORLD_SIZE), but {joined.num_processes} train together. "
            f"Start them with `torchrun --nproc-per-node {started} -m -- makelib train …`, or unset WORLD_SIZE."
        )
    return joined


def gather(rows: Tensor) -> Tensor:
    """(n, …) of each process -> (world · n, …) in order of rank, with gradients to the process that a row came from."""
    return rows if place()[1] == 1 else _Gather.apply(rows.contiguous())


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is the sum of what every process asks of a row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(place()[1])]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[share(len(gradient))]


def add_up(rows: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if place()[1] > 1:
        dist.all_reduce(rows)
    return rows


def add_up_gradients(module: nn.Module) -> None:
    """Each weight's gradient becomes the sum over processes; one that no process has stays none."""
    if place()[1] == 1:
        return
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    has = add_up(
        torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32, device=weights[0].device)
    )
    for weight, count in zip(weights, has.tolist(), strict=True):
        if count:
            weight.grad = add_up(torch.zeros_like(weight) if weight.grad is None else weight.grad)


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The same for arrays of any number of rows, without gradients."""
    return rows if place()[1] == 1 else np.concatenate(gather_object([rows]))


def decided(value: Any) -> Any:
    """What the main process says: decisions are made once, or processes would part."""
    return value if place()[1] == 1 else broadcast_object_list([value])[0]


def broadcast_weights(module: nn.Module) -> None:
    """The main process's weights and buffers, for all."""
    if place()[1] > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the rows of all processes; torch's own `SyncBatchNorm` runs on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = gather(x.new_tensor([x[:, 0].numel()])).sum()
        mean = (gather(x.sum((0, 2, 3))[None]).sum(0) / count)[:, None, None]
        variance = gather((x - mean).square().sum((0, 2, 3))[None]).sum(0) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (x - mean) * scale[:, None, None] + self.bias[:, None, None]


def join_batch_norms(module: nn.Module) -> None:
    """Batch norms of `module` count the rows of all processes from here on."""
    if place()[1] == 1:
        return
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = BatchNorm
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"The image backbone's {type(part).__name__} cannot be counted over several processes. "
                "Train in one process, or set model.image_backbone to one with plain BatchNorm2d or none."
            )


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """A process that vanished ends the others with one line."""
    try:
        yield
    except RuntimeError as error:
        if place()[1] == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(
            f"Another process of this training ended or cannot be reached ({type(error).__name__}). Its own message says why; "
            "start all again, and they go on from the last checkpoint."
        ) from error
