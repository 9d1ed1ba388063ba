"""One training loop for both kinds of training: adversarial training is one more argument."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advlib.checks import (
    Attack,
    check_attack,
    check_count,
    check_device,
    check_function,
    check_model,
    check_number,
    check_path,
    check_type,
)
from advlib.data import Batches
from advlib.monitor import TrainingMonitor as TrainingMonitor
from advlib.monitor import Watcher, Watchers, stop_on_interrupt
from advlib.runtime import evaluation_mode
from advlib.training.state import History as History
from advlib.training.state import Metrics, Run, Saved, described
from advlib.training.state import load_checkpoint as load_checkpoint
from advlib.training.step import Loss as Loss
from advlib.training.step import (
    Optimizer,
    Schedule,
    Step,
    generators_of,
    optimizer_of,
    own,
    schedule_of,
)

CALLS = {"augment": "x", "loss": "model x y progress", "schedule": "progress"}
CALLS |= {"evaluate": "model", "stop_when": "metrics"}


def fit(
    model: nn.Module,
    batches: Batches | Iterable[tuple[Tensor, Tensor]],
    *,
    epochs: int,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    attack: Attack | None = None,
    loss: Loss | None = None,
    precision: torch.dtype | None = None,
    device: str | torch.device | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    stop_when: Callable[[Metrics], bool] | None = None,
    keep_best: str | None = None,
    monitor: Watcher | Sequence[Watcher] | None = None,
    checkpoint: str | Path | None = None,
    save_seconds: float = 60.0,
    save_steps: int | None = None,
) -> History:
    """Train `model` in place on cross-entropy, on attacked images when `attack` is given.

    Args:
        model: maps images (n, c, h, w) in [0, 1] to logits (n, classes). One wrapped in
            DistributedDataParallel trains together with the others of its process group.
        batches: a `Batches`, a DataLoader, or any iterable of (x, y) to go through once an epoch.
        epochs: passes over `batches`.
        lr, momentum, weight_decay: of SGD, where there is no `optimizer`.
        optimizer: one of torch's that steps without a closure, or a function that makes one of the
            parameters, as `partial(torch.optim.AdamW, lr=1e-3)` does.
        schedule: maps progress, from 0 at the first iteration to 1 after the last, to a factor of
            the learning rate, see `cyclic`; or a scheduler of torch's, or a function that makes
            one of the optimizer. It steps once an iteration.
        augment: `augment(x) -> x`, applied to every batch first.
        attack: `attack(model, x, y) -> x_adv`, applied to every batch before the step (Goodfellow
            et al., ICLR 2015; Madry et al., ICLR 2018).
        loss: `loss(model, x, y, progress) -> scalar` takes the place of cross-entropy, with
            `progress` as for `schedule`; see `advlib.losses`.
        precision: torch.bfloat16, or torch.float16 with a loss scale that adapts; for autocast.
        device: batches are moved to it if it is given.
        evaluate: called after each epoch with the model in evaluation mode; returns a dict of
            numbers for `History.metrics`.
        stop_when: takes all metrics after each `evaluate`; True ends training (`advlib.collapse`).
        keep_best: name of a metric; training ends, also by an error, with the weights of the epoch
            after which that was highest.
        monitor: a `TrainingMonitor`, see `advlib.monitor`; or a function `f(iteration, loss)` that
            is called after each iteration, from 1; or several of these.
        checkpoint: a file to save the training in, and to go on from if it is there.
        save_seconds: save after the iteration that ends this long after the last save.
        save_steps: save every so many iterations instead.

    The first interrupt (Ctrl-C, or the notebook's stop button) ends training after the present
    iteration and keeps the network; a second one raises KeyboardInterrupt at once. A model in
    evaluation mode is trained in training mode and handed back as it was.

    The same call goes on from its checkpoint; with more `epochs`, beyond its end. `Batches` go on
    in the middle of an epoch, on a CPU bit for bit; any other iterable after the last finished
    epoch. Random numbers go on, too: those of `batches`, of generators in a `functools.partial`,
    and torch's global ones; a generator hidden elsewhere, as in a closure, begins again. A
    checkpoint is of this training if settings, images and labels (of `Batches`) and architecture
    agree. A function counts by its name, and by its settings in a `functools.partial`, not by its
    code. `epochs`, `evaluate` and `monitor` may be others. A save that fails, say on a full disk,
    is a warning; the one before it stays. See `load_checkpoint`, too.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range, before any step; or a
            function among them returned what it should not.
        ValueError: `checkpoint` is of another training, another architecture or a newer advlib.
        OSError: `checkpoint` is damaged.
        FloatingPointError: the loss or the model's output is NaN; the learning rate is too high.
        MemoryError: a batch does not fit into memory.
    """
    functions: dict[str, Any] = {"augment": augment, "loss": loss, "attack": attack}
    functions |= {"schedule": schedule, "evaluate": evaluate, "stop_when": stop_when}
    epochs = check_count("epochs", epochs)
    others = [precision, keep_best, checkpoint, save_seconds, save_steps]
    _check(model, batches, functions, others)
    place = None if device is None else check_device("device", device)
    watchers = Watchers(monitor)
    made = optimizer_of(optimizer, model, lr, momentum=momentum, weight_decay=weight_decay)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in made.param_groups]
    iterations = _length(batches)
    factor, scheduler = schedule_of(schedule, made, epochs * iterations)
    half = precision is torch.float16
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=half)
    generators = generators_of(batches, functions)
    run = Run(own(model), batches, place, made, scheduler, scaler, generators)
    saved = None
    if checkpoint is not None:
        shaping: dict[str, Any] = {"optimizer": (type(made), *groups), "precision": precision}
        shaping |= {"keep_best": keep_best, **functions}
        del shaping["evaluate"]
        words = described(batches, shaping)
        saved = Saved(Path(checkpoint), run, words, save_seconds, save_steps)
    step = Step(run, model, augment=augment, attack=attack, loss=loss, precision=precision)
    history, buffers = run.history, [buffer.clone() for buffer in model.buffers()]
    flags = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()

    def train_on(x: Tensor, y: Tensor) -> Tensor:
        now = run.epoch * iterations + run.position + 0.5 if iterations else run.epoch + 0.5
        progress = min(now / (epochs * (iterations or 1)), 1.0)
        if factor is not None:
            share = check_number("schedule's value", factor(progress))
            for group, before in zip(made.param_groups, groups, strict=True):
                group["lr"] = before["lr"] * share
        return step(x, y, progress)

    try:
        with stop_on_interrupt(watchers, alone=own(model) is model):
            watchers.start(epochs, iterations)
            for value in history.loss:
                watchers.step(torch.tensor(value), now=False)
            while run.epoch < epochs and not run.ended:
                if _epoch(train_on, run, watchers, saved):
                    break
                if evaluate is not None:
                    with evaluation_mode(run.model):
                        found = _numbers(evaluate(run.model))
                    for name, value in found.items():
                        history.metrics.setdefault(name, []).append(value)
                run.epoch, run.position = run.epoch + 1, 0
                if keep_best is not None and _is_best(history.metrics, found, keep_best):
                    run.best = deepcopy(run.model.state_dict())
                    history.kept_epoch = run.epoch
                run.ended = stop_when is not None and bool(stop_when(history.metrics))
                if saved is not None and not isinstance(batches, Batches):
                    saved.write()
        history.stopped = run.epoch < epochs
        if saved is not None:
            saved.write()
    finally:
        model.zero_grad()
        if not run.done:  # an argument was wrong that shows in the first step only
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            run.rewind()
        if factor is not None:
            for group, settings in zip(made.param_groups, groups, strict=True):
                group["lr"] = settings["lr"]
        if run.best:
            run.model.load_state_dict(run.best)
        for module, training in flags:
            module.training = training
        if run.losses:  # of an epoch that an error ended
            history.loss += torch.stack(run.losses).tolist()
        watchers.finish(history)
    return history


def cyclic(progress: float) -> float:
    """Schedule from 0 to 1 at two fifths and back to 0 (Wong et al., 2020, arXiv:2001.03994)."""
    progress = check_number("progress", progress, maximum=1)
    return min(progress / 0.4, (1 - progress) / 0.6)


def _epoch(
    train_on: Callable[[Tensor, Tensor], Tensor], run: Run, watchers: Watchers, saved: Saved | None
) -> bool:
    """Train for the rest of an epoch, and say whether a stop was asked for."""
    if watchers.stop_requested:
        return True
    for x, y in run.rest_of_epoch():
        run.losses.append(train_on(x, y))
        run.position += 1
        watchers.step(run.losses[-1])
        if saved is not None:
            saved.step()
        if watchers.stop_requested:
            break
    if not run.position:
        raise ValueError(f"batches must yield pairs (x, y) in every epoch, none in {run.epoch + 1}")
    run.settle()
    return bool(watchers.stop_requested)


def _length(batches: Any) -> int:
    """Batches in a pass, or 0 where that can't be known."""
    try:
        return len(batches)
    except TypeError:
        return 0


def _is_best(metrics: Metrics, found: dict[str, float], name: str) -> bool:
    """Whether the value of a metric just `found` is its first highest one; NaN never is."""
    if name not in metrics:
        raise ValueError(f"keep_best must be a metric of evaluate, got {name!r}")
    *before, last = metrics[name]
    return name in found and last == last and not any(value >= last for value in before)


def _numbers(found: Any) -> dict[str, float]:
    check_type("what evaluate returns", found, dict, "a dict")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            given = type(value).__name__
            raise TypeError(f"evaluate must return numbers, got {given} for {name!r}")
    return {str(name): float(value) for name, value in found.items()}


def _check(model: Any, batches: Any, functions: dict[str, Any], others: list[Any]) -> None:
    precision, keep_best, path, seconds, steps = others
    check_model(model)
    if functions["attack"] is not None:
        check_attack("attack", functions["attack"])
    for name, given in CALLS.items():
        function = functions[name]
        if function is not None and not (name == "schedule" and hasattr(function, "step")):
            check_function(name, function, *given.split())
    if not any(precision is known for known in (None, torch.bfloat16, torch.float16)):
        raise ValueError(f"precision must be torch.bfloat16, float16 or None, got {precision}")
    if not isinstance(batches, Iterable):
        given = type(batches).__name__
        raise TypeError(f"batches must be an iterable of pairs (x, y), got {given}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have parameters to train")
    among = batches.x if isinstance(batches, Batches) else getattr(batches, "sampler", ())
    images = _length(among)
    size = getattr(batches, "batch_size", None)
    last = images % size if size and not getattr(batches, "drop_last", False) else 0
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    if 1 in (last, size) and any(m.training or not model.training for m in norms):
        raise ValueError(
            "batches must not hold a batch of one image, which BatchNorm can't normalise: "
            f"change batch_size, got {size} for {images} images"
        )
    if keep_best is not None:
        check_type("keep_best", keep_best, str, "a str")
    if functions["evaluate"] is None and (functions["stop_when"] or keep_best is not None):
        raise ValueError("evaluate must be given too: stop_when and keep_best go by its numbers")
    if path is not None:
        check_path("checkpoint", path)
    check_number("save_seconds", seconds)
    if steps is not None:
        check_count("save_steps", steps)
