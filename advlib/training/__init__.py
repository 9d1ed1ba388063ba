"""One training loop for both kinds of training: adversarial training is one more argument."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advlib import distributed
from advlib.data import Batches
from advlib.runtime import (
    Attack,
    check_count,
    check_function,
    check_images,
    check_labels,
    check_logits,
    check_model,
    check_number,
    check_path,
    check_text,
    evaluation_mode,
    generators_in,
)
from advlib.training.state import History, Metrics, Run, Saved, described, load_checkpoint
from advlib.training.step import Loss, Step

__all__ = ["History", "Loss", "Metrics", "TrainingMonitor", "cyclic", "fit", "load_checkpoint"]


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
    weight_decay: float = 0.0,
    schedule: Callable[[float], float] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    attack: Attack | None = None,
    loss: Loss | None = None,
    precision: torch.dtype | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    stop_when: Callable[[Metrics], bool] | None = None,
    keep_best: str | None = None,
    monitor: TrainingMonitor | None = None,
    checkpoint: str | Path | None = None,
    save_seconds: float = 60.0,
    save_steps: int | None = None,
) -> History:
    """Train `model` in place by SGD on cross-entropy, on attacked images when `attack` is given.

    Args:
        model: maps images (n, c, h, w) in [0, 1] to logits (n, classes).
        batches: the training set, cut and shuffled; a `Batches`, so that it is checked first.
        epochs: passes over `batches`.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: of SGD.
        schedule: maps progress, from 0 at the first iteration to 1 after the last, to a factor of
            `lr`; see `cyclic`. The learning rate is constant without it.
        augment: `augment(x) -> x`, applied to every batch first; see `advlib.data.shifted`.
        attack: `attack(model, x, y) -> x_adv`, applied to every batch before the step.
        loss: `loss(model, x, y, progress) -> scalar` takes the place of cross-entropy, with
            `progress` as for `schedule`; see `advlib.losses`.
        precision: torch.bfloat16 or torch.float16: compute in it wherever torch's autocast finds
            that safe. float16 comes with a scale for the loss that adapts itself.
        evaluate: called after each epoch with the model in evaluation mode; the numbers it
            returns are kept in `History.metrics`.
        stop_when: called after each `evaluate` with all metrics so far; training ends when it
            returns True. See `advlib.collapse`.
        keep_best: name of a metric; training ends with the weights of the epoch after which that
            was highest, also if it ends with an error. Whether `evaluate` reports the metric is
            only known after the first epoch.
        monitor: reported to after each iteration; see `advlib.monitor`.
        checkpoint: a file to save the training in. If it is there, the same call goes on from
            where it was saved, and ends as an undisturbed run does, on a CPU bit for bit. A call
            that had ended returns at once. See `load_checkpoint`, too.
        save_seconds: how often to save: after the iteration that ends so many seconds later.
        save_steps: how often to save, in iterations; `save_seconds` then plays no part.

    The first interrupt (Ctrl-C, or the notebook's stop button) ends training after the present
    iteration, with the network trained so far; a second one raises KeyboardInterrupt at once.
    A model handed over in evaluation mode is trained in training mode and handed back as it was.
    A save that fails, say on a full disk, is a warning; the one before it stays.

    Random numbers go on from where they were, too: those of `batches`, of generators that stand in
    a `functools.partial` (as in `partial(fgsm, ..., generator=generator)`), and torch's global
    ones. A generator that is hidden elsewhere, in a closure, say, would begin again. Whether a
    checkpoint is of this training is told by the images, the settings and the functions; a function
    of your own is known by its code and by what that refers to, any other object by its class.
    `evaluate` may be another, as long as it draws from no other generator.

    Within `advlib.distributed.joined` all processes train one network together, each on its share
    of every batch. Each parameter that requires a gradient must then have a part in every loss.
    Process 0 saves. An interrupt ends all of them at once.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range, before any step; or a
            function among them returned what it should not.
        ValueError: `checkpoint` is of another training, another architecture or a newer advlib.
        OSError: `checkpoint` is damaged.
        FloatingPointError: the loss is no longer finite; the learning rate is too high.
        MemoryError: a batch does not fit into memory; says how many images would. Statistics of
            BatchNorm may have taken the batch in.

    References: Goodfellow et al., ICLR 2015; Madry et al., ICLR 2018, for `attack`.
    """
    functions: dict[str, Any] = {
        "schedule": schedule,
        "augment": augment,
        "attack": attack,
        "loss": loss,
        "evaluate": evaluate,
        "stop_when": stop_when,
    }
    numbers: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    _check(model, batches, epochs, numbers, functions, precision)
    check_monitor(monitor)
    _check_keeping(evaluate, stop_when, keep_best, checkpoint, save_seconds, save_steps)
    run = Run(
        model,
        batches,
        optimizer=torch.optim.SGD(model.parameters(), **numbers),
        scaler=torch.amp.GradScaler(batches.x.device.type, enabled=precision is torch.float16),
        generators=[
            generator
            for generator in generators_in(batches.generator, *functions.values())
            if generator.device.type in ("cpu", batches.x.device.type)
        ],
    )
    saved = None
    if checkpoint is not None:
        shaping: dict[str, Any] = {"epochs": epochs, "precision": precision, "keep_best": keep_best}
        shaping |= {name: float(number) for name, number in numbers.items()}
        shaping |= {name: function for name, function in functions.items() if name != "evaluate"}
        settings = described(batches, shaping)
        saved = Saved(Path(checkpoint), run, settings, save_seconds, save_steps)
    iterations = epochs * len(batches)
    step = Step(run, augment=augment, attack=attack, loss=loss, precision=precision)
    monitor = monitor or _Silent()
    flags = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    history = run.history

    def train_on(rows: Tensor) -> Tensor:
        progress = (run.done + 0.5) / iterations
        factor = 1.0 if schedule is None else check_number("schedule's value", schedule(progress))
        run.optimizer.param_groups[0]["lr"] = lr * factor
        return step(rows, progress)

    try:
        with _stop_on_interrupt(monitor):
            monitor.start(epochs, len(batches))
            for value in history.loss:
                monitor.step(torch.tensor(value))
            while run.epoch < epochs and not run.ended:
                if _epoch(train_on, run, monitor, saved):
                    break
                if evaluate is not None:
                    with evaluation_mode(model):
                        found = _numbers(distributed.from_first(evaluate(model)))
                    for name, value in found.items():
                        history.metrics.setdefault(name, []).append(value)
                run.epoch += 1
                if keep_best is not None and _is_best(history.metrics, found, keep_best):
                    run.best = deepcopy(model.state_dict())
                    history.kept_epoch = run.epoch
                run.ended = stop_when is not None and bool(stop_when(history.metrics))
            run.ended = run.ended or run.epoch == epochs
        history.stopped = run.epoch < epochs
        if saved is not None:
            saved.write()
    finally:
        run.optimizer.zero_grad()
        if run.best:
            model.load_state_dict(run.best)
        for module, training in flags:
            module.training = training
        if run.losses:  # of an epoch that an error ended
            history.loss += torch.stack(run.losses).tolist()
        monitor.finish(history)
    return history


def cyclic(progress: float) -> float:
    """Schedule of "fast" training: from 0 straight up to 1 at two fifths of the way, and down to 0.

    Reference: Wong et al., ICLR 2020, arXiv:2001.03994.
    """
    check_number("progress", progress, maximum=1)
    return min(progress / 0.4, (1 - progress) / 0.6)


def _epoch(
    train_on: Callable[[Tensor], Tensor], run: Run, monitor: TrainingMonitor, saved: Saved | None
) -> bool:
    """Train for the rest of an epoch, and say whether a stop was asked for."""

    def is_stopping() -> bool:  # one process alone can't leave the others
        return monitor.stop_requested and distributed.processes() == 1

    if is_stopping():
        return True
    for rows in run.rest_of_epoch():
        run.losses.append(train_on(rows))
        monitor.step(run.losses[-1])
        if saved is not None:
            saved.step()
        if is_stopping():
            break
    distributed.align_buffers(run.model)
    run.settle()
    return is_stopping()


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
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or distributed.processes() > 1:
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


def _numbers(found: Any) -> dict[str, float]:
    """What `evaluate` returned, as floats."""
    if not isinstance(found, dict):
        raise TypeError(f"evaluate must return a dict, got {type(found).__name__}")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"evaluate must return numbers, got {type(value).__name__} for {name!r}"
            )
    return {str(name): float(value) for name, value in found.items()}


def check_monitor(monitor: Any) -> None:
    """Accept None, or what has all that `TrainingMonitor` names."""
    needed = ("start", "step", "finish", "stop_requested")
    missing = [name for name in needed if not hasattr(monitor, name)]
    if monitor is not None and missing:
        raise TypeError(f"monitor must have {missing[0]}, got {type(monitor).__name__}")


def _check(
    model: Any,
    batches: Any,
    epochs: Any,
    numbers: dict[str, Any],
    functions: dict[str, Any],
    precision: Any,
) -> None:
    check_model(model)
    check_count("epochs", epochs)
    for name, number in numbers.items():
        check_number(name, number)
    for name, function in functions.items():
        if function is not None:
            check_function(name, function)
    if not any(precision is known for known in (None, torch.bfloat16, torch.float16)):
        raise ValueError(
            f"precision must be torch.bfloat16, torch.float16 or None, got {precision}"
        )
    if not isinstance(batches, Batches):
        raise TypeError(f"batches must be advlib.Batches, got {type(batches).__name__}")
    check_images(batches.x)
    check_labels(batches.y, batches.x)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have parameters to train")
    with evaluation_mode(model):
        check_logits(model, batches.x, batches.y)
    _check_shares(batches)


def _check_shares(batches: Batches) -> None:
    """Every process must have an image of every batch, and the same order of them."""
    last = len(batches.x) % batches.batch_size or min(batches.batch_size, len(batches.x))
    if last < distributed.processes():
        raise ValueError(
            f"batches must hold an image for each of {distributed.processes()} processes, the last "
            f"one holds {last}: change batch_size"
        )
    state = batches.generator.get_state()
    if not torch.equal(state, distributed.from_first(state)):
        raise ValueError("batches must have a generator that is seeded alike in every process")


def _check_keeping(
    evaluate: Any, stop_when: Any, keep_best: Any, path: Any, seconds: Any, steps: Any
) -> None:
    if keep_best is not None:
        check_text("keep_best", keep_best)
    if evaluate is None and (stop_when is not None or keep_best is not None):
        raise ValueError("evaluate must be given too: stop_when and keep_best go by its numbers")
    if path is not None:
        check_path("checkpoint", path)
    check_number("save_seconds", seconds)
    if steps is not None:
        check_count("save_steps", steps)
