"""Training and evaluation shared among processes, as torchrun starts them.

Each process runs the same program on its own device. Within `joined`, `advlib.fit` trains on its
process's share of every batch and sums the gradients over all, so that each process ends with the
same network; `correct` shares the batches of an evaluation. Without torchrun the same program runs
as one process, and gives the same numbers, up to rounding. Dropout draws for each process, and
BatchNorm on CPUs takes its own share of a batch only: with these they are other numbers.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from advlib import evaluation
from advlib.data import Batches
from advlib.runtime import Attack, check_count, check_device, generators_in


@contextmanager
def joined(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that torchrun started, or be the only one; yields this one's device.

    Processes talk through NCCL on GPUs, one GPU each, and through Gloo on CPUs; `device` is
    "cuda" or "cpu", by default the first that is there. CUDA_VISIBLE_DEVICES says which GPUs.

    Raises:
        ValueError: there is no such device, or are fewer GPUs here than processes; or torchrun
            can't restart processes on several machines as it was started.
    """
    place = check_device("device", device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type not in ("cuda", "cpu") or place.index is not None:
        raise ValueError(f"device must be cuda or cpu, without a number, got {device!r}")
    if place.type == "cuda":
        rank = int(os.environ.get("LOCAL_RANK", 0))
        if rank >= torch.cuda.device_count():
            raise ValueError(
                f"device: process {rank} has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; lower --nproc-per-node"
            )
        place = torch.device("cuda", rank)
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    store, rank, world = _meeting_point()
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    ended = False
    try:
        yield place
        ended = True
    finally:
        if ended or world == 1:  # after an error others may be waiting for us: torchrun ends them
            dist.destroy_process_group()


def _meeting_point() -> tuple[Any, int, int]:
    """Where the processes find each other, the number of this one, and how many there are."""
    if not dist.is_torchelastic_launched():
        return dist.HashStore(), 0, 1  # type: ignore[attr-defined]
    store, rank, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    if os.environ["TORCHELASTIC_USE_AGENT_STORE"] != "True":
        return store, rank, world
    # After a restart torchrun hands out the old store, with addresses of processes that have died
    # (github.com/pytorch/pytorch/issues/135712). So each start gets a part of its own. Machines
    # count restarts on their own, so that several can't agree on it.
    if os.environ["GROUP_WORLD_SIZE"] != "1" and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0":
        raise ValueError(
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE must be 1 in the environment of torchrun, for "
            "restarts on several machines"
        )
    return dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store), rank, world  # type: ignore[attr-defined]


def is_joined() -> bool:
    """Whether this process is one of several, or stands for them."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process; 0 if it is alone."""
    return dist.get_rank() if is_joined() else 0


def processes() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_joined() else 1


def share(rows: Tensor) -> tuple[int, Tensor]:
    """This process's part of a batch's rows, and how many rows come before it."""
    parts = rows.tensor_split(processes())
    return sum(map(len, parts[: rank()])), parts[rank()]


def summed(value: Tensor) -> Tensor:
    """The sum of `value` over all processes."""
    if is_joined():
        dist.all_reduce(value)
    return value


def from_first(value: Any) -> Any:
    """What `value` is in process 0."""
    if processes() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def align_buffers(model: nn.Module) -> None:
    """Give each process the buffers of process 0: BatchNorm has counted its own share only."""
    if processes() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def correct(
    model: nn.Module, batches: Batches, *, attack: Attack | None = None, seed: int = 0
) -> Tensor:
    """Tell for each image whether `model` gets its (attacked) version right, bool (n,).

    As `advlib.correct`, with the batches shared among the processes; each gets the whole result.
    The generators of `attack`, a `functools.partial`, are seeded anew for each batch, from `seed`:
    so the result is the same for any number of processes. They end as they began.

    Raises:
        TypeError, ValueError: as `advlib.correct`; or `batches` is shuffled.
    """
    if not isinstance(batches, Batches):
        raise TypeError(f"batches must be advlib.Batches, got {type(batches).__name__}")
    if batches.shuffle:
        raise ValueError("batches must not be shuffled: every process needs the same order")
    check_count("seed", seed, minimum=0)
    right = torch.zeros(len(batches.x), dtype=torch.int64, device=batches.x.device)
    seeds = torch.randint(2**32, (len(batches),), generator=torch.Generator().manual_seed(seed))
    with _states_kept(generators_in(attack)) as generators:
        for i, rows in enumerate(batches.order()):
            if i % processes() == rank():
                for generator in generators:
                    generator.manual_seed(int(seeds[i]))
                pair = batches.x[rows], batches.y[rows]
                right[rows] = evaluation.correct(model, [pair], attack=attack).long()
    return summed(right).bool()


def accuracy(
    model: nn.Module, batches: Batches, *, attack: Attack | None = None, seed: int = 0
) -> float:
    """Fraction of images that `model` gets right. Arguments and errors as in `correct`."""
    right = correct(model, batches, attack=attack, seed=seed)
    return int(right.sum()) / len(right)


@contextmanager
def _states_kept(generators: Sequence[torch.Generator]) -> Iterator[Sequence[torch.Generator]]:
    states = [generator.get_state() for generator in generators]
    try:
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
