"""What a training under way consists of, and its file: `fit` can go on from there."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from advlib import checkpoint
from advlib.checks import check_model, check_path
from advlib.data import Batches, checked_pair

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


@dataclass
class Run:
    """A training under way: all that has to be saved to go on from here."""

    model: nn.Module
    batches: Any
    device: torch.device | None
    optimizer: torch.optim.Optimizer
    scheduler: Any  # one of torch's, or None
    scaler: torch.amp.GradScaler
    generators: dict[str, torch.Generator]
    history: History = field(default_factory=History)
    best: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0  # epochs that are over, `evaluate` included
    position: int = 0  # batches of the present epoch that are done
    ended: bool = False  # whether `stop_when` has had its way
    losses: list[Tensor] = field(default_factory=list)  # on the device, not yet in `history`

    def __post_init__(self) -> None:
        """Note the generators' states."""
        self.first_states: dict[str, Any] = self.states()
        self.order_state: Any = self.first_states.get("batches")

    def states(self) -> dict[str, Any]:
        """The state of each generator."""
        return {name: generator.get_state() for name, generator in self.generators.items()}

    @property
    def done(self) -> int:
        """Iterations that are done."""
        return len(self.history.loss) + len(self.losses)

    def rest_of_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels still to come in this epoch, in the order that it began with."""
        batches = self.batches
        if not isinstance(batches, Batches):
            sampler: Any = getattr(batches, "sampler", None)
            if hasattr(sampler, "set_epoch"):  # torch's DistributedSampler wants to be told
                sampler.set_epoch(self.epoch)
            for batch in batches:
                yield checked_pair(batch, self.device)
            return
        generator = batches.generator
        if not self.position:
            self.order_state = generator.get_state()
            rest = batches.order()
        else:
            state = generator.get_state()
            generator.set_state(self.order_state)
            rest = batches.order()[self.position :]
            generator.set_state(state)
        for rows in rest:
            x, y = batches.x[rows], batches.y[rows]
            yield (x, y) if self.device is None else (x.to(self.device), y.to(self.device))

    def settle(self) -> None:
        """Move the losses into the history. A GPU has to wait for that."""
        if self.losses:
            self.history.loss += torch.stack(self.losses).tolist()
            self.losses.clear()
            if not torch.isfinite(torch.tensor(self.history.loss[-1])):
                raise FloatingPointError(
                    f"the loss became {self.history.loss[-1]}: lower the learning rate"
                )

    def content(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        self.settle()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {} if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": asdict(self.history),
            "best": self.best,
            "epoch": self.epoch,
            "position": self.position,
            "ended": self.ended,
            "order_state": self.order_state,
            # only of those drawn from: the others stay as the caller has them
            "states": {
                name: state
                for name, state in self.states().items()
                if (first := self.first_states[name]) is None or not torch.equal(first, state)
            },
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Go back to where `content` was taken, the model excepted."""
        groups = self.optimizer.state_dict()["param_groups"]  # as the settings say, which agree
        kept = groups if self.scheduler is None else content["optimizer"]["param_groups"]
        state = content["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": state, "param_groups": kept})
        if self.scheduler is not None:
            self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        self.history = History(**content["history"])
        self.best, self.epoch, self.position, self.ended, self.order_state = (
            content[name] for name in ("best", "epoch", "position", "ended", "order_state")
        )
        first, order = self.first_states, self.order_state
        if isinstance(self.batches, Batches):
            done = self.epoch * len(self.batches) + self.position
            if min(self.epoch, self.position) < 0 or done != len(self.history.loss):
                raise ValueError("its numbers of epochs and of iterations do not agree")
            # a GPU's can't be a CPU's: where the device is another, that one begins anew
            if order is None or len(order) != len(first["batches"]):
                self.order_state = first["batches"]
        fitting = {
            name: state
            for name, state in content["states"].items()
            if name in first and len(state) == len(first[name]) and not _rank()
        }
        for name, state in fitting.items():
            self.generators[name].set_state(state)
        first.update(dict.fromkeys(fitting))

    def rewind(self) -> None:
        """Put generators that did not go on from a checkpoint back to where they began."""
        for name, first in self.first_states.items():
            if first is not None:
                self.generators[name].set_state(first)


class Saved:
    """The checkpoint of a run."""

    def __init__(
        self, path: Path, run: Run, settings: dict[str, str], seconds: float, steps: int | None
    ) -> None:
        """Bring `run` to where the file at `path` says it was, if there is one."""
        self.path, self.run, self.settings = path, run, settings
        self.seconds, self.steps = seconds, steps
        self.last = time.monotonic()
        content = self._read() if path.exists() else None
        if content is None:
            self.write()  # a place that can't be written to is noticed now
            try:
                if path.exists():  # and so is a layer's own state that could not be read again
                    self._read()
            except ValueError:
                path.unlink()
                raise
            return
        if content["best"]:
            checkpoint.check(run.model, content["best"], path)
        checkpoint.check(run.model, content["model"], path)
        try:
            run.restore(content)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            run.rewind()
            raise ValueError(f"checkpoint: {path} can't be gone on from: {error}") from error
        checkpoint.fill(run.model, content["model"], path)

    def _read(self) -> dict[str, Any] | None:
        content = _read_training(self.path)
        for name in self.settings | content["settings"]:
            before, now = (part.get(name) for part in (content["settings"], self.settings))
            if before == now or (name == "data" and _rank()):  # every process has its own part
                continue
            if not content["history"]["loss"]:  # without a step: nothing is lost
                return None
            raise ValueError(
                f"checkpoint: {self.path} is of a training with {name}={before}, not {now}; "
                "call fit as then, or give another file"
            )
        return content

    def step(self) -> None:
        """Save if it is time to, and if the training can go on from here."""
        if self.steps is None:
            due = time.monotonic() - self.last >= self.seconds
        else:
            due = self.run.done % self.steps == 0
        if due:
            self.write()

    def write(self) -> None:
        """Save. A file that can't be written is no reason to end a training."""
        if self.run.position and not isinstance(self.run.batches, Batches):
            return  # no other iterable can be gone on with in the middle of an epoch
        if _rank():
            return
        try:
            checkpoint.write(self.path, self.run.content() | {"settings": self.settings})
        except OSError as error:
            warnings.warn(f"the training was not saved: {error}", stacklevel=2)
        self.last = time.monotonic()


def load_checkpoint(path: str | Path, model: nn.Module) -> History:
    """Load the network that `fit(checkpoint=path)` trained into `model`, and return its history.

    With `keep_best` it is the best network so far. Loading runs no code from the file. Raises
    OSError if the file is missing or damaged, ValueError if it is none of `fit`'s, of another
    architecture, or from a newer advlib.
    """
    check_model(model)
    path = check_path("path", path)
    content = _read_training(path)
    checkpoint.fill(model, content["best"] or content["model"], path)
    return History(**content["history"])


def read_history(saved: Any, path: Path) -> History:
    """Return the history that `asdict` turned into `saved`, found at `path`; ValueError if none."""
    if not isinstance(saved, dict) or saved.keys() != asdict(History()).keys():
        raise ValueError(f"{path} holds no history of a training")
    return History(**saved)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _read_training(path: Path) -> dict[str, Any]:
    content = checkpoint.read(path)
    kinds: dict[str, Any] = {"epoch": int, "position": int, "ended": bool}
    kinds |= {"order_state": (Tensor, NoneType)}
    parts = ("model", "optimizer", "scheduler", "scaler", "history", "best", "settings", "states")
    kinds |= dict.fromkeys(parts, dict)
    if not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} holds no training that this advlib can go on with")
    read_history(content["history"], path)
    return content


def described(batches: Any, settings: dict[str, Any]) -> dict[str, str]:
    """What shapes a training, in words: two trainings are the same if these are."""
    if isinstance(batches, Batches):
        data = checkpoint.words((batches.x, batches.y))
        cut: dict[str, Any] = {"batch_size": batches.batch_size, "shuffle": batches.shuffle}
    else:
        data = type(batches).__qualname__
        cut = {"batch_size": getattr(batches, "batch_size", None)}
    return {"data": data} | {
        name: checkpoint.words(value) for name, value in (cut | settings).items()
    }
