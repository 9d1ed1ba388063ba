"""One step of training: augment, attack, the loss, its gradient, the optimiser."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from advlib import distributed, engine
from advlib.runtime import Attack, is_out_of_memory, part_of_batch
from advlib.training.state import Run

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


class Objective(nn.Module):
    """The loss as a module, as DistributedDataParallel wants it."""

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        """Take the network and its loss, or None for cross-entropy."""
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        """Mean loss of a batch, a scalar."""
        if self.loss is None:
            return engine.mean_loss(self.model, x, y)
        value = self.loss(self.model, x, y, progress)
        if not isinstance(value, Tensor) or value.shape != ():
            raise ValueError(f"loss must return a scalar tensor, got {_kind(value)}")
        return value


class Step:
    """Takes the steps of one training."""

    def __init__(
        self,
        run: Run,
        *,
        augment: Callable[[Tensor], Tensor] | None,
        attack: Attack | None,
        loss: Loss | None,
        precision: torch.dtype | None,
    ) -> None:
        """Take the arguments of `fit` that say what a step is."""
        self.run, self.augment, self.attack, self.precision = run, augment, attack, precision
        self.alone = Objective(run.model, loss)
        self.objective: nn.Module = self.alone
        if distributed.processes() > 1:
            self.objective = DistributedDataParallel(self.alone)

    def __call__(self, rows: Tensor, progress: float) -> Tensor:
        """Train on a batch, given by its rows; return its mean loss, detached.

        Raises:
            MemoryError: the batch does not fit into memory.
        """
        before, mine = distributed.share(rows)
        part: AbstractContextManager[None] = nullcontext()
        if distributed.is_joined():
            part = part_of_batch(before, len(mine), len(rows))
        try:
            with part:
                value = self._gradients(self.objective, mine, progress, len(mine) / len(rows))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # lets go of what did fit
        else:
            self.run.scaler.step(self.run.optimizer)
            self.run.scaler.update()
            return distributed.summed(value * (len(mine) / len(rows)))
        fits = self._largest_that_fits(mine, progress) * distributed.processes()
        advice = f"batch_size={fits} would fit" if fits else "not even one image would fit"
        raise MemoryError(f"a batch of {len(rows)} images does not fit: {advice}") from failure

    def _gradients(
        self, objective: nn.Module, rows: Tensor, progress: float, share: float
    ) -> Tensor:
        """Leave the weights' gradients in `grad`; return the mean loss of these images."""
        run, batches = self.run, self.run.batches
        x, y = batches.x[rows], batches.y[rows]
        with self._autocast(x):
            if self.augment is not None:
                x = _like("augment", self.augment(x), x)
            if self.attack is not None:
                x = _like("attack", self.attack(run.model, x, y), x)
        run.optimizer.zero_grad()
        with self._autocast(x):  # anew: weights that an attack cast carry no gradient
            value = objective(x, y, progress)
        # the processes' gradients are averaged: a larger share has to count more
        run.scaler.scale(value * (share * distributed.processes())).backward()
        return value.detach()

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, self.precision, enabled=self.precision is not None)

    def _largest_that_fits(self, rows: Tensor, progress: float) -> int:
        """How many of these images fit into memory, found by halving; 0 if not even one does."""
        run = self.run
        states = [generator.get_state() for generator in run.generators]
        buffers = [buffer.clone() for buffer in run.model.buffers()]
        size = len(rows)
        while size := size // 2:
            try:
                self._gradients(self.alone, rows[:size], progress, 1.0)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        run.optimizer.zero_grad()
        for generator, state in zip(run.generators, states, strict=True):
            generator.set_state(state)
        for buffer, value in zip(run.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        return size


def _like(name: str, found: Any, x: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != x.dtype:
        wanted = f"a tensor {tuple(x.shape)}, {x.dtype}"
        raise ValueError(f"{name} must return {wanted}, got {_kind(found)}")
    return found


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}, {value.dtype}"
    return type(value).__name__
