"""One step of training: augment, attack, the loss, its gradient, the optimizer and its schedule."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler

from advlib import fast
from advlib.checks import (
    Attack,
    called,
    check_attacked,
    check_classes,
    check_number,
    check_type,
    is_out_of_memory,
)
from advlib.data import Batches
from advlib.runtime import default_generator
from advlib.training.state import Run

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
Optimizer = torch.optim.Optimizer | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[float], float] | Callable[[torch.optim.Optimizer], Any] | Any


def own(model: nn.Module) -> nn.Module:
    """The network itself, where DistributedDataParallel is around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def optimizer_of(given: Any, model: nn.Module, lr: Any, **numbers: Any) -> torch.optim.Optimizer:
    """The optimizer that `fit` was given or has to make, once it is known to work."""
    if given is None:
        if lr is None:
            raise TypeError("lr must be given, or an optimizer")
        numbers = {name: check_number(name, number) for name, number in numbers.items()}
        return torch.optim.SGD(model.parameters(), lr=check_number("lr", lr), **numbers)
    if (lr, numbers) != (None, {"momentum": 0.9, "weight_decay": 0.0}):
        raise ValueError(
            "lr must be left out, and momentum, weight_decay: the optimizer has its own"
        )
    if not isinstance(given, torch.optim.Optimizer) and callable(given):
        given = given(list(model.parameters()))
    check_type("optimizer", given, torch.optim.Optimizer, "one of torch's, or make one")
    name = type(given).__name__
    step = inspect.signature(type(given).step).parameters
    if "closure" in step and step["closure"].default is inspect.Parameter.empty:
        raise ValueError(f"optimizer must step without a closure, which {name} can't")
    if isinstance(given, torch.optim.SparseAdam):
        raise ValueError(f"optimizer must take dense gradients, which {name} can't")
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    held = {id(p) for group in given.param_groups for p in group["params"] if p.requires_grad}
    if not held or not held <= wanted:
        raise ValueError("optimizer must hold parameters of model, and no others")
    return given


def schedule_of(given: Any, optimizer: torch.optim.Optimizer, steps: int) -> tuple[Any, Any]:
    """A function of progress or None, and a scheduler of torch's or None, for so many steps."""
    if given is None:
        return None, None
    kind = getattr(given, "func", given)
    if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler):
        given = given(optimizer)
    elif not isinstance(given, lr_scheduler.LRScheduler):
        try:
            check_number("schedule's value", given(0.0))
            return given, None
        except Exception as error:  # it wants no number: does it want the optimizer?
            try:
                made = given(optimizer)
            except Exception:
                raise error from None
            if not isinstance(made, lr_scheduler.LRScheduler):
                raise
            given = made
    if given.optimizer is not optimizer:
        raise ValueError("schedule must be one of the optimizer that fit is given")
    if isinstance(given, lr_scheduler.ReduceLROnPlateau):
        raise ValueError("schedule must step without a metric, which ReduceLROnPlateau can't")
    lasts = getattr(given, "total_steps", None)
    if isinstance(lasts, int) and lasts < steps:
        raise ValueError(f"schedule must last for {steps} steps, got {lasts}")
    return None, given


def generators_of(batches: Any, functions: dict[str, Any]) -> dict[str, torch.Generator]:
    """The generators that a training draws from, by name.

    Those of `batches` and of the `functools.partial`s among `functions`; advlib's and torch's own.
    """
    found = {"advlib": default_generator, "torch": torch.default_generator}
    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.default_generators[torch.cuda.current_device()]
    if isinstance(getattr(batches, "generator", None), torch.Generator):
        found["batches"] = batches.generator
    todo = list(functions.items())
    while todo:
        name, value = todo.pop()
        if isinstance(value, torch.Generator):
            found[name] = value
        elif isinstance(value, partial):
            todo += [(f"{name}.{key}", part) for key, part in value.keywords.items()]
            todo += [(f"{name}.{i}", part) for i, part in enumerate((value.func, *value.args))]
    return found


class Step:
    """Takes the steps of one training."""

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        *,
        augment: Callable[[Tensor], Tensor] | None,
        attack: Attack | None,
        loss: Loss | None,
        precision: torch.dtype | None,
    ) -> None:
        """Take the arguments of `fit` that say what a step is; `model` may be a parallel one."""
        self.run, self.model, self.loss = run, model, loss
        self.augment, self.attack, self.precision = augment, attack, precision

    def __call__(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        """Train on a batch; return its mean loss, detached.

        Raises:
            MemoryError: the batch does not fit into memory.
        """
        run = self.run
        try:
            value = self._gradients(x, y, progress)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                words = f"a batch of {len(x)} images does not fit into memory: lower batch_size"
                raise MemoryError(words) from error
            raise
        run.scaler.step(run.optimizer)
        run.scaler.update()
        if run.scheduler is not None:
            run.scheduler.step()
        return value

    def _gradients(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        """Leave the weights' gradients in `grad`; return the mean loss of these images."""
        with self._autocast(x):
            if self.augment is not None:
                x = check_attacked("augment", self.augment(x.clone()), x, finite=False)
            if self.attack is not None:
                x_adv = self.attack(own(self.model), x.clone(), y)
                x = check_attacked("attack", x_adv, x, finite=False)
        self.model.zero_grad()
        with self._autocast(x):  # anew: weights that an attack cast carry no gradient
            value = self._loss(x, y, progress)
        if not value.requires_grad:
            name = "model" if self.loss is None else "loss"
            raise ValueError(f"{name} must give what depends on the weights of model")
        self.run.scaler.scale(value).backward()
        return value.detach()

    def _loss(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        if self.loss is None:
            scores = called(self.model, fast.ordered(self.model, x))
            batches = self.run.batches
            if not isinstance(batches, Batches):
                check_classes(scores, y)
            elif not self.run.done:  # all at once, so that a GPU need not wait at each step
                check_classes(scores, batches.y)
            return F.cross_entropy(scores, y)
        value = self.loss(self.model, x, y, progress)
        if not isinstance(value, Tensor) or value.shape != ():
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return a scalar tensor, got {kind}")
        return value

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, self.precision, enabled=self.precision is not None)
