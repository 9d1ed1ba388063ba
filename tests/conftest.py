"""Small models with known behaviour, and the one check of what a call must leave as it was."""

import multiprocessing
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported, here and in child processes

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

settings.register_profile("advlib", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("advlib")

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def own_monitors(monkeypatch: pytest.MonkeyPatch) -> None:
    """No say from outside about monitors."""
    monkeypatch.delenv("ADVLIB_MONITOR", raising=False)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def unlikely_rng() -> None:
    set_unlikely_rng()


def set_unlikely_rng() -> None:
    """Global random states that no reseeding by mistake arrives at."""
    random.seed(90210)
    np.random.seed(90211)  # noqa: NPY002
    torch.manual_seed(90212)


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts processes that have imported what takes time, torch._dynamo for optimizers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["advlib.recipes", "hypothesis", "pytest", "torch._dynamo"])
    return context


def linear(weight: Any, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Logits `weight @ pixels`: every gradient and worst case is known in closed form."""
    weight = torch.as_tensor(weight, dtype=dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    layer.weight.data.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer)


def small_net(channels: int = 1, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A smooth network for 4x4 images, three classes; in training mode its BatchNorm is frozen.

    Training mode would show: the other BatchNorm and the dropout change what it computes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.Conv2d(6, 6, 3),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(24, 3),
        ).to(dtype)
    net[1].running_mean.fill_(0.1)
    net[1].eval()  # frozen by its owner
    return net


def images(n: int = 8, channels: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (n, channels, 4, 4) in [0, 1], some pixels exactly black, some exactly white."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, channels, 4, 4, generator=generator, dtype=torch.float64)
    return (x * 1.4 - 0.2).clamp(0, 1).to(dtype)


def labels(n: int = 8, classes: int = 3) -> Tensor:
    return torch.arange(n) % classes


def global_rng() -> list[Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return [random.getstate(), kind, keys.tobytes(), rest, *map(in_bytes, states)]


def in_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Flags, weights, buffers, parameter gradients and global RNG must end as they began."""

    def state() -> tuple[Any, ...]:
        flags = [module.training for module in model.modules()]
        tensors = [in_bytes(tensor) for tensor in model.state_dict().values()]
        grads = [None if p.grad is None else in_bytes(p.grad) for p in model.parameters()]
        return flags, tensors, grads, global_rng()

    before = state()
    try:
        yield
    finally:
        assert state() == before


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks of one architecture have the same weights, to the bit."""
    return all(torch.equal(p, b.state_dict()[name]) for name, p in a.state_dict().items())


class Breakdown(Exception):
    """Raised by models and attacks that are made to fail."""


class FailsAfter(nn.Module):
    """Works like `model` for some calls, then raises."""

    def __init__(self, model: nn.Module, calls: int) -> None:
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise Breakdown
        return self.model(x)
