"""What a training under way consists of, and its file: `fit` can go on from there."""

import dis
import hashlib
import time
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from advlib import checkpoint, distributed
from advlib.data import Batches
from advlib.runtime import check_model, check_path

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
    batches: Batches
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    generators: list[torch.Generator]
    history: History = field(default_factory=History)
    best: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    """Epochs that are over, `evaluate` included."""
    ended: bool = False
    losses: list[Tensor] = field(default_factory=list)
    """Losses on the device, not yet in `history`."""

    def __post_init__(self) -> None:
        """Note the generators' states."""
        self.order_state = self.batches.generator.get_state()
        self.first_states: list[Tensor | None] = [g.get_state() for g in self.generators]

    @property
    def done(self) -> int:
        """Iterations that are done."""
        return len(self.history.loss) + len(self.losses)

    @property
    def position(self) -> int:
        """Batches of the present epoch that are done."""
        return self.done - self.epoch * len(self.batches)

    def rest_of_epoch(self) -> list[Tensor]:
        """Rows of the batches still to come in this epoch, in the order that it began with."""
        generator, position = self.batches.generator, self.position
        if not position:
            self.order_state = generator.get_state()
            return self.batches.order()
        state = generator.get_state()
        generator.set_state(self.order_state)
        rest = self.batches.order()[position:]
        generator.set_state(state)
        return rest

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
        states = [generator.get_state() for generator in self.generators]
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": asdict(self.history),
            "best": self.best,
            "epoch": self.epoch,
            "ended": self.ended,
            "order_state": self.order_state,
            # None where nothing was drawn: then the caller's own state stays
            "states": [
                None if first is not None and torch.equal(first, state) else state
                for first, state in zip(self.first_states, states, strict=True)
            ],
        }

    def fits(self, content: dict[str, Any]) -> bool:
        """Whether the training can go on from `content`, its model aside."""
        history, states, scaler = (content[k] for k in ("history", "states", "scaler"))
        position = len(history["loss"]) - content["epoch"] * len(self.batches)
        generators = [*self.generators[: len(states)], self.batches.generator]
        return (
            content["epoch"] >= 0
            and 0 <= position <= len(self.batches)
            and scaler.keys() == self.scaler.state_dict().keys()
            and all(isinstance(value, (int, float)) for value in scaler.values())
            and _are_momenta(content["optimizer"].get("state"), list(self.model.parameters()))
            and all(map(_is_state_of, generators, [*states, content["order_state"]]))
        )

    def restore(self, content: dict[str, Any]) -> None:
        """Go back to where `content` was taken, the model excepted."""
        groups = self.optimizer.state_dict()["param_groups"]  # as the settings say, which agree
        momentum = content["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": momentum, "param_groups": groups})
        self.scaler.load_state_dict(content["scaler"])
        self.history = History(**content["history"])
        self.best, self.epoch, self.ended = (content[k] for k in ("best", "epoch", "ended"))
        self.order_state = content["order_state"]
        for i, state in enumerate(content["states"]):
            if state is not None:
                self.generators[i].set_state(state)
                self.first_states[i] = None


class Saved:
    """The checkpoint of a run."""

    def __init__(
        self,
        path: Path,
        run: Run,
        settings: dict[str, str],
        seconds: float,
        steps: int | None,
    ) -> None:
        """Bring `run` to where the file at `path` says it was, if there is one."""
        self.path, self.run, self.settings = path, run, settings
        self.seconds, self.steps = seconds, steps
        self.last = time.monotonic()
        content = None
        if distributed.rank() == 0 and path.exists():
            content = self._read()
        content = distributed.from_first(content)
        if content is not None:
            self._restore(content)
            return
        self.write()  # a place that can't be written to is noticed now
        if distributed.rank() == 0 and path.exists():
            _read_training(path)  # and so is a layer whose own state can't be read back

    def _read(self) -> dict[str, Any] | None:
        content = _read_training(self.path)
        for name, value in self.settings.items():
            before = content["settings"].get(name)
            if before == value:
                continue
            if not content["history"]["loss"]:  # without a step: nothing is lost
                return None
            raise ValueError(
                f"checkpoint: {self.path} is of a training with {name}={before}, not {value}; "
                "call fit as then, give another file, or delete this one"
            )
        return content

    def _restore(self, content: dict[str, Any]) -> None:
        found, here = len(content["states"]), len(self.run.generators)
        if found != here:
            raise ValueError(
                f"checkpoint: {self.path} is of a training with {found} random generators, not "
                f"{here}: go on with the same functions, evaluate among them"
            )
        if not self.run.fits(content):
            raise ValueError(f"checkpoint: {self.path} can't be gone on from: delete it")
        if content["best"]:
            checkpoint.check(self.run.model, content["best"], self.path)
        checkpoint.fill(self.run.model, content["model"], self.path)
        self.run.restore(content)

    def step(self) -> None:
        """Save if it is time to."""
        if self.steps is None:
            due = time.monotonic() - self.last >= self.seconds
        else:
            due = self.run.done % self.steps == 0
        if due:
            self.write()

    def write(self) -> None:
        """Save. A file that can't be written is no reason to end a training."""
        if distributed.rank() == 0:
            try:
                checkpoint.write(self.path, self.run.content() | {"settings": self.settings})
            except OSError as error:
                warnings.warn(f"the training was not saved: {error}", stacklevel=2)
        self.last = time.monotonic()


def load_checkpoint(path: str | Path, model: nn.Module) -> History:
    """Load the network that `fit(checkpoint=path)` trained into `model`, and return its history.

    With `keep_best` it is the best network so far. Loading runs no code from the file.

    Raises:
        OSError: the file is missing or damaged.
        ValueError: it is none of `fit`'s, of another architecture, or from a newer advlib.
    """
    check_model(model)
    path = check_path("path", path)
    content = _read_training(path)
    checkpoint.fill(model, content["best"] or content["model"], path)
    return History(**content["history"])


def read_history(saved: Any, path: Path) -> History:
    """Return the history that `asdict` turned into `saved`, found in the file at `path`.

    Raises:
        ValueError: it is no history.
    """
    if not (
        isinstance(saved, dict)
        and saved.keys() == asdict(History()).keys()
        and isinstance(saved["metrics"], dict)
        and all(map(_are_floats, [saved["loss"], *saved["metrics"].values()]))
        and isinstance(saved["stopped"], bool)
        and isinstance(saved["kept_epoch"], (int, NoneType))
    ):
        raise ValueError(f"{path} holds no history of a training: delete it")
    return History(**saved)


def _read_training(path: Path) -> dict[str, Any]:
    content = checkpoint.read(path)
    kinds = {"epoch": int, "ended": bool, "states": list, "order_state": Tensor}
    kinds |= dict.fromkeys(("model", "optimizer", "scaler", "history", "best", "settings"), dict)
    if not all(isinstance(content.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} holds no training of advlib's: delete it, or give another file")
    read_history(content["history"], path)
    return content


def _are_floats(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, float) for value in values)


def _are_momenta(found: Any, parameters: list[nn.Parameter]) -> bool:
    """Whether `found` is SGD's state of some of these parameters."""
    return isinstance(found, dict) and all(
        i in range(len(parameters))
        and isinstance(slots, dict)
        and all(
            value is None or (isinstance(value, Tensor) and value.shape == parameters[i].shape)
            for value in slots.values()
        )
        for i, slots in found.items()
    )


def _is_state_of(generator: torch.Generator, state: Any) -> bool:
    """Whether a generator of this kind can have this state; None stands for its own."""
    if state is None:
        return True
    try:
        torch.Generator(generator.device).set_state(state)
    except (TypeError, RuntimeError):
        return False
    return True


def described(batches: Batches, settings: dict[str, Any]) -> dict[str, str]:
    """What shapes a training, in words: two trainings are the same if these are."""
    data = (
        f"{tuple(batches.x.shape)}, {batches.x.dtype}, images {_digest(batches.x)}, "
        f"labels {_digest(batches.y)}"
    )
    cut = {"batch_size": batches.batch_size, "shuffle": batches.shuffle}
    return {"data": data} | {name: _words(value) for name, value in (cut | settings).items()}


def _words(value: Any, seen: set[FunctionType] | None = None) -> str:
    """Describe a setting, or what the functions `seen` refer to.

    Functions are described by their code and what that refers to; those of advlib, and those of
    another module than the first, by their name only.
    """
    seen = set() if seen is None else seen
    if isinstance(value, partial):
        given = [_words(argument, seen.copy()) for argument in value.args]
        given += [f"{name}={_words(v, seen.copy())}" for name, v in sorted(value.keywords.items())]
        return f"{_words(value.func, seen.copy())}({', '.join(given)})"
    if isinstance(value, tuple):
        return f"({', '.join(_words(item, seen.copy()) for item in value)})"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {_digest(value)}"
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    name: str = getattr(value, "__qualname__", type(value).__qualname__)
    if not isinstance(value, FunctionType) or value in seen:
        return name
    modules = {function.__module__ for function in seen} or {value.__module__}
    if str(value.__module__).partition(".")[0] == "advlib" or value.__module__ not in modules:
        return name
    seen.add(value)
    parts = [_code(value.__code__), *(_words(needed, seen) for needed in _needs(value))]
    return f"{name} {hashlib.sha256(' '.join(parts).encode()).hexdigest()[:8]}"


def _code(code: CodeType) -> str:
    """What a function does, the same in every process of one version of Python."""
    constants = [
        _code(value)
        if isinstance(value, CodeType)
        else repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
        for value in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _needs(function: FunctionType) -> list[Any]:
    """What a function refers to: defaults, closure and globals."""
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            found.append(cell.cell_contents)
    codes = [function.__code__]
    for code in codes:  # which grows
        codes += [value for value in code.co_consts if isinstance(value, CodeType)]
        loads = [step for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]
        names = dict.fromkeys(step.argval for step in loads)
        found += [function.__globals__[n] for n in names if n in function.__globals__]
    return found


def _digest(tensor: Tensor) -> str:
    numbers = tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(numbers.data).hexdigest()[:8]
