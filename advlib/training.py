"""One training loop for both kinds of training: adversarial training is one more argument."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from advlib import engine
from advlib.data import Batches
from advlib.runtime import (
    Attack,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_model,
    check_number,
    evaluation_mode,
)

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
Metrics = dict[str, list[float]]


@dataclass
class History:
    """What `fit` saw.

    Attributes:
        loss: mean cross-entropy of each iteration's batch, as trained on.
        metrics: for each name that `evaluate` returned, its value after each epoch.
        stopped: training ended before its last epoch did.
        kept_epoch: the epoch, from 1, whose network `keep_best` gave back; None without it.
    """

    loss: list[float] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)
    stopped: bool = False
    kept_epoch: int | None = None


class TrainingMonitor(Protocol):
    """What `fit` reports to. Set `stop_requested` to end training after the present iteration."""

    stop_requested: bool

    def start(self, epochs: int, iterations: int) -> None:
        """Training begins: so many epochs of so many iterations."""

    def step(self, loss: Tensor) -> None:
        """One iteration is done; `loss` is a detached scalar on the model's device."""

    def finish(self, history: History) -> None:
        """Training is over: complete, stopped or, with what there is so far, failed."""


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    lr: float,
    momentum: float = 0.9,
    schedule: Callable[[float], float] | None = None,
    attack: Attack | None = None,
    loss: Loss | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    stop_when: Callable[[Metrics], bool] | None = None,
    keep_best: str | None = None,
    monitor: TrainingMonitor | None = None,
) -> History:
    """Train `model` in place by SGD on cross-entropy, on attacked images when `attack` is given.

    Args:
        model: maps images (n, c, h, w) in [0, 1] to logits (n, classes).
        batches: the training set, cut and shuffled; a `Batches`, so that it is checked first.
        epochs: passes over `batches`.
        lr: learning rate.
        momentum: of SGD.
        schedule: maps progress, from 0 at the first iteration to 1 after the last, to a factor of
            `lr`; see `cyclic`. The learning rate is constant without it.
        attack: `attack(model, x, y) -> x_adv`, applied to every batch before the step.
        loss: `loss(model, x, y, progress) -> scalar` takes the place of cross-entropy, with
            `progress` as for `schedule`; see `advlib.losses`.
        evaluate: called after each epoch with the model in evaluation mode; the numbers it
            returns are kept in `History.metrics`.
        stop_when: called after each `evaluate` with all metrics so far; training ends when it
            returns True. See `advlib.collapse`.
        keep_best: name of a metric; training ends with the weights of the epoch after which that
            was highest, also if it ends with an error. Whether `evaluate` reports the metric is
            only known after the first epoch.
        monitor: reported to after each iteration; see `advlib.monitor`.

    The first interrupt (Ctrl-C, or the notebook's stop button) ends training after the present
    iteration, with the network trained so far; a second one raises KeyboardInterrupt at once.
    A model handed over in evaluation mode is trained in training mode and handed back as it was.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range, before any step.
        FloatingPointError: the loss is no longer finite; the learning rate is too high.

    References: Goodfellow et al., ICLR 2015; Madry et al., ICLR 2018, for `attack`.
    """
    functions = {"schedule": schedule, "attack": attack, "loss": loss, "evaluate": evaluate}
    _check(model, batches, epochs, lr, momentum, functions | {"stop_when": stop_when})
    if keep_best is not None and not isinstance(keep_best, str):
        raise TypeError(f"keep_best must be a str, got {type(keep_best).__name__}")
    if evaluate is None and (stop_when is not None or keep_best is not None):
        raise ValueError("evaluate must be given too: stop_when and keep_best go by its numbers")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    iterations = epochs * len(batches)
    scheduler = LambdaLR(optimizer, _factor(schedule, iterations))

    def step(x: Tensor, y: Tensor) -> Tensor:
        if attack is not None:
            x = attack(model, x, y)
        optimizer.zero_grad()
        if loss is None:
            value = engine.backward(model, x, y)
        else:
            value = loss(model, x, y, (scheduler.last_epoch + 0.5) / iterations)
            value.backward()
        optimizer.step()
        scheduler.step()
        return value.detach()

    history = History()
    best: dict[str, Tensor] = {}
    monitor = monitor or _Silent()
    flags = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    try:
        with _stop_on_interrupt(monitor):
            monitor.start(epochs, len(batches))
            for epoch in range(1, epochs + 1):
                if _epoch(step, batches, monitor, history):
                    break
                if evaluate is not None:
                    with evaluation_mode(model):
                        found = evaluate(model)
                    for name, value in found.items():
                        history.metrics.setdefault(name, []).append(value)
                if keep_best is not None and _is_best(history.metrics, found, keep_best):
                    best = {name: value.clone() for name, value in model.state_dict().items()}
                    history.kept_epoch = epoch
                if stop_when is not None and stop_when(history.metrics):
                    break
        history.stopped = len(history.loss) < iterations
    finally:
        optimizer.zero_grad()
        if best:
            model.load_state_dict(best)
        for module, training in flags:
            module.training = training
        monitor.finish(history)
    return history


def cyclic(progress: float) -> float:
    """Schedule of "fast" training: from 0 straight up to 1 at two fifths of the way, and down to 0.

    Reference: Wong et al., ICLR 2020, arXiv:2001.03994.
    """
    return min(progress / 0.4, (1 - progress) / 0.6)


def _factor(schedule: Callable[[float], float] | None, total: int) -> Callable[[int], float]:
    """Factor of the learning rate in iteration i of `total`, taken in that iteration's middle."""

    def factor(i: int) -> float:
        return 1.0 if schedule is None or i >= total else schedule((i + 0.5) / total)

    return factor


def _epoch(
    step: Callable[[Tensor, Tensor], Tensor],
    batches: Batches,
    monitor: TrainingMonitor,
    history: History,
) -> bool:
    """Train for one pass, add its losses to `history`, and say whether a stop was asked for."""
    losses = []
    for x, y in batches:
        if monitor.stop_requested:
            break
        losses.append(step(x, y))
        monitor.step(losses[-1])
    if losses:  # read once an epoch: each read makes a GPU wait
        history.loss += torch.stack(losses).tolist()
        if not torch.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss became {history.loss[-1]}: lower the learning rate")
    return monitor.stop_requested


class _Silent:
    """The monitor of a caller who wants none."""

    stop_requested = False

    def start(self, epochs: int, iterations: int) -> None:
        pass

    def step(self, loss: Tensor) -> None:
        pass

    def finish(self, history: History) -> None:
        pass


@contextmanager
def _stop_on_interrupt(monitor: TrainingMonitor) -> Iterator[None]:
    """Turn the first SIGINT into a request to stop; the second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return

    def request_stop(signum: int, frame: FrameType | None) -> None:
        monitor.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, request_stop)
    try:
        yield
    finally:  # None: the handler before ours was not set from Python, and can't be put back
        signal.signal(signal.SIGINT, signal.default_int_handler if previous is None else previous)


def _is_best(metrics: Metrics, found: dict[str, float], name: str) -> bool:
    """Whether the value of a metric just `found` is its first highest one; NaN never is."""
    if name not in metrics:
        raise ValueError(f"keep_best must be a metric of evaluate, got {name!r}")
    *before, last = metrics[name]
    return name in found and last == last and not any(value >= last for value in before)


def _check(
    model: Any, batches: Any, epochs: Any, lr: Any, momentum: Any, functions: dict[str, Any]
) -> None:
    check_model(model)
    check_count("epochs", epochs)
    check_number("lr", lr)
    check_number("momentum", momentum)
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    if not isinstance(batches, Batches):
        raise TypeError(f"batches must be advlib.Batches, got {type(batches).__name__}")
    check_images(batches.x)
    check_labels(batches.y, batches.x)
    with evaluation_mode(model):
        check_logits(model, batches.x, batches.y)
