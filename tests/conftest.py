"""Small models with known behaviour, and the one check of what a call must leave as it was."""

import math
import multiprocessing
import os
import random
from contextlib import contextmanager

os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported, here and in child processes

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

settings.register_profile("advlib", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("advlib")
torch.set_num_threads(1)

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No say from outside about monitors or about what is drawn."""
    monkeypatch.delenv("ADVLIB_MONITOR", raising=False)
    set_unlikely_rng()


def set_unlikely_rng():
    """Global random states that no reseeding by mistake arrives at."""
    random.seed(90210)
    np.random.seed(90211)  # noqa: NPY002
    torch.manual_seed(90212)


@pytest.fixture(scope="session")
def processes():
    """Starts processes that have imported what takes time, torch._dynamo for optimizers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["advlib.book.recipes", "hypothesis", "pytest", "torch._dynamo"])
    return context


@pytest.fixture(scope="module")
def browser():
    from browser import chromium  # which most tests do without

    with chromium() as browser:
        yield browser


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(weight, dtype=torch.float32):
    """Logits `weight @ pixels`: every gradient and worst case is known in closed form."""
    weight = torch.as_tensor(weight, dtype=dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    layer.weight.data.copy_(weight)
    return nn.Sequential(nn.Flatten(), layer)


def small_net(channels=1, dtype=torch.float32):
    """A smooth network for 4x4 images, three classes; in training mode its BatchNorm is frozen.

    Training mode would show: the other BatchNorm and the dropout change what it computes.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh()]
        after = [nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten()]
        net = nn.Sequential(*before, *after, nn.Linear(24, 3)).to(dtype)
    net[1].running_mean.fill_(0.1)
    net[1].eval()  # frozen by its owner
    return net


def images(n=8, channels=1, dtype=torch.float32):
    """Images (n, channels, 4, 4) in [0, 1], some pixels exactly black, some exactly white."""
    x = torch.rand(n, channels, 4, 4, generator=seeded(1), dtype=torch.float64)
    return (x * 1.4 - 0.2).clamp(0, 1).to(dtype)


def labels(n=8, classes=3):
    return torch.arange(n) % classes


def global_rng():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return [random.getstate(), kind, keys.tobytes(), rest, *map(in_bytes, states)]


def in_bytes(tensor):
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()


@contextmanager
def untouched(model):
    """What belongs to the model, the global RNG and torch's modes must end as they began."""

    def state():
        flags = [module.training for module in model.modules()]
        tensors = [in_bytes(tensor) for tensor in model.state_dict().values()]
        grads = [None if p.grad is None else in_bytes(p.grad) for p in model.parameters()]
        held = [sorted(vars(module)) for module in model.modules()]  # a forward of its own, say
        hooks = [len(h) for m in model.modules() for k, h in vars(m).items() if k.endswith("hooks")]
        trained = [p.requires_grad for p in model.parameters()]
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()
        autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()
        return flags, tensors, grads, global_rng(), held, hooks, trained, modes, autocast

    before = state()
    try:
        yield
    finally:
        assert state() == before


def equal(a, b):
    """Whether two networks of one architecture have the same weights, to the bit."""
    return all(torch.equal(p, b.state_dict()[name]) for name, p in a.state_dict().items())


class Breakdown(Exception):
    """Raised by models and attacks that are made to fail."""


class Spy(nn.Module):
    """Keeps what `model` is asked about, and how often for a gradient; breaks after some calls."""

    def __init__(self, model, calls=math.inf):
        super().__init__()
        self.model, self.calls, self.seen, self.gradients = model, calls, [], 0

    def forward(self, x):
        self.calls -= 1
        if self.calls < 0:
            raise Breakdown
        self.seen.append(x.detach().clone())
        self.gradients += x.requires_grad
        return self.model(x)


FailsAfter = Spy


class Notes:
    """A monitor that notes what it is told, and asks to stop after some iterations."""

    def __init__(self, stop_after=None):
        self.stop_requested, self.stop_after, self.losses = False, stop_after, []

    def start(self, *given):
        self.given, self.stop_requested = given, self.stop_after == 0

    def step(self, loss):
        self.losses.append(loss.item())
        self.stop_requested = len(self.losses) == self.stop_after

    def finish(self, history):
        self.history = history
