"""Bad input to every public function: an error that names it, before any work, and no trace.

What may be wrong follows from an argument's kind, and the functions from what is public: a new one
stands in the table at once, and a new parameter fails until it has a kind. With `-s -m slow` it
draws 10,000 calls, good and bad mixed.
"""

import inspect
import operator
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import Breakdown, FailsAfter, images, in_bytes, small_net, untouched
from torch import Tensor, nn

import advlib
from advlib import Batches, checkpoint, collapse, data, losses, plots, runtime, verification

NAN, INF, N = float("nan"), float("inf"), 4
FOLDER = Path(tempfile.mkdtemp("advlib"))  # empty but for two files
FOREIGN, TRAINED = FOLDER / "foreign.pt", FOLDER / "trained.pt"


def plain_net() -> nn.Sequential:
    """A network of layers that bounds are known for, and of which nothing is proven."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    net[0].weight.data *= 5
    return net


NET, PLAIN, X = small_net(), plain_net(), images(N)  # holds a 0 and a 1
for parameter in (*NET.parameters(), *PLAIN.parameters()):
    parameter.grad = torch.ones_like(parameter)
with advlib.evaluation_mode(NET), torch.no_grad():
    Y = torch.full((N,), int(NET(X)[0].argmax()))  # right, so that attacks are asked
FOREIGN.write_bytes(b"somebody else's")
advlib.fit(plain_net(), [(X, Y)], epochs=1, lr=0.1, checkpoint=TRAINED)


class Bad(NamedTuple):
    value: Any
    names: str = ""  # what the message may begin with beside the argument's name: a pattern
    late: bool = False  # it shows only once the model, or a function that was given, is called
    others: dict[str, Any] = {}  # noqa: RUF012 - what else has to be given for it to be wrong
    error: Any = (TypeError, ValueError)


class Kind(NamedTuple):
    """A kind of argument: wrong values, and unusual ones that mean the same as a plain one."""

    bad: list[Any]  # or values alone
    same: Callable[[Any], list[Any]] = lambda value: []

    def and_bad(self, *more: Any) -> "Kind":
        return Kind([*self.bad, *more], self.same)

    def early(self) -> "Kind":
        """Without what only a model could tell."""
        return Kind([bad for bad in self.bad if not isinstance(bad, Bad)], self.same)


class Answers(nn.Module):  # with something else than its logits
    def __init__(self, change: Callable[[Tensor], Any], before: Any = lambda x: x) -> None:
        super().__init__()
        self.net, self.change, self.before = plain_net(), change, before

    def forward(self, x: Tensor) -> Any:
        return self.change(self.net(self.before(x)))


def at(value: Any, x: Tensor = X) -> Tensor:
    x = x.clone()
    x.view(-1)[5 % x.numel()] = value
    return x


def late(values: list[Any], wrap: Callable[[Any], Any] = lambda value: value) -> list[Bad]:
    return [Bad(wrap(value), late=True) for value in values]


def returning(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda model, x, y: change(x)  # an attack


same, in_inference = returning(lambda x: x), torch.inference_mode()(torch.clone)
# fmt: off
EVERY = {"none": None, "bool": True, "int": 3, "float": 0.5, "complex": 1j, "str": "no"}
EVERY |= {"bytes": b"no", "list": [object()], "dict": {"a": object()}, "set": {"a"}}
EVERY |= {"object": object(), "class": nn.Linear, "function": lambda: None, "module": nn.Flatten()}
EVERY |= {"words": np.array(["linf", "0"]), "array": np.zeros((2, 2, 2)), "path": Path("a")}
EVERY |= {"tensor": torch.zeros(2, 2, 2), "sparse": torch.zeros(N).to_sparse()}
EVERY |= {"meta": torch.empty(N, device="meta"), "generator": torch.Generator()}

def but(*kinds: str) -> list[Any]:
    return [value for kind, value in EVERY.items() if kind not in kinds]

def number(least: float = 0.0, most: float = 3.4e38, *, above: bool = False) -> Kind:
    bad = [NAN, INF, -INF, np.float32(NAN), 10**400, -(10**400), 1e39, most * 1.01 + 0.01,
           least if above else least - 0.1, np.float64(least - 1)]
    return Kind([*but("int", "float"), *bad], lambda v: [np.float64(v), np.float32(v)])

def count(least: int = 1, most: int = 2**63 - 1) -> Kind:
    bad = [NAN, INF, 1.0, np.float64(2), least - 1, np.int64(-(2**63)), most + 1, 10**400]
    return Kind([*but("int"), *bad], lambda v: [np.int64(v), np.int16(v)])

def choice(*allowed: str) -> Kind:
    return Kind([*but(), *(f(w) for w in allowed for f in (str.upper, "{} ".format)), "", list])
SIZES = torch.full((N,), 0.1)
SIGNED = Kind(
    [*number(-3.4e38).bad, 1e30, SIZES[1:], SIZES[None], SIZES[:, None], SIZES[:0], np.full(3, 0.1),
     *(at(v, SIZES) for v in (NAN, INF, -INF, 1e30)), SIZES + 0j, np.full(N, NAN), SIZES > 0],
    lambda v: [np.float64(v), np.float32(v), torch.tensor(v), torch.full((N,), v), np.full(N, v),
               torch.full((N,), v).double().requires_grad_()])
BUDGET = SIGNED.and_bad(-0.1, np.float64(-1), at(-0.1, SIZES))
PAIR = Kind(
    [*but("none"), "a", (), (0,), (0, 1, 2), (1, 0), (0, 0), (0, NAN), (-INF, 1), (0, INF), [X, X],
     (0, "1"), (0, True), (None, 1), (0, 1e39), (0, 10**400), (0, 1j)],
    lambda v: [list(v), tuple(map(int, v)), tuple(map(np.float32, v))])
BOUNDS = PAIR.and_bad(Bad((0.1, 0.9), "x"), Bad((2, 3), "x"))
FLAG = Kind([*but("bool"), 0, 1, "yes", np.array([True]), np.int64(1)], lambda v: [np.bool_(v)])

def pictures(x: Tensor) -> Kind:
    """Images; bad are also those that the networks do not take."""
    whole = (torch.uint8, torch.int8, torch.int16, torch.int64, torch.bool, torch.complex64)
    other = [x.double(), x.bfloat16(), x.repeat(1, 2, 1, 1), x[..., 1:], x[..., None], x.flatten(1)]
    return Kind(
        [*but("array", "tensor"), *((x * 255).to(dtype) for dtype in whole), x.to("meta"),
         x.to(torch.float8_e5m2), x.to_sparse(), x[:0], x[:, :0], x[0, 0, 0], x[0, 0, 0, 0],
         *(at(v, x) for v in (NAN, INF, -INF)), at(NAN, x).numpy(), (x * 255).int().numpy(),
         x.numpy() + 0j, x.numpy().astype(object), x.numpy()[:0],
         *(Bad(image, "model|lower|upper", True) for image in other)],
        lambda x: [x[..., None].expand(*x.shape, 2)[..., 0], x.clone().requires_grad_(),
                   x.clone().requires_grad_() * 1, x.numpy(), x.double().numpy(), in_inference(x),
                   x.contiguous(memory_format=torch.channels_last)])
ANY_IMAGES = pictures(X)
OUTSIDE = [X + 0.01, X - 0.01, X * 255, (X * 255).numpy(), at(1.1), at(-0.1)]
IMAGES = ANY_IMAGES.and_bad(*OUTSIDE, Bad(X[0], "y|model", True))
LABELS = Kind(
    [*but("int"), *(Y.to(d) for d in (torch.bool, torch.half, torch.float32, torch.complex64)),
     Y.to("meta"), Y.to_sparse(), Y[None], Y[:, None], Y[1:], Y[:0], at(-1, Y), at(-(2**63), Y), -1,
     np.int64(-1), Y.numpy()[1:], Y.float().numpy(), Y.numpy().astype(str), Y.tolist(), 10**30,
     *late([at(3, Y), at(2**63 - 1, Y), 3, at(7, Y).numpy()])],
    lambda y: [y.int(), y.to(torch.uint8), y.to(torch.uint16), y.numpy(), y.numpy().astype("int16"),
               int(y[0]), np.int32(y[0]), y[0], in_inference(y), torch.stack([y, y], 1)[:, 0]])
NO_LOGITS: list[Callable[[Tensor], Any]] = [
    lambda s: s[0], lambda s: s[:, 0], lambda s: s[None], lambda s: s[:, :1], lambda s: s[:, :0],
    lambda s: s.repeat(2, 1), lambda s: s.sum(), lambda s: s.argmax(1), lambda s: s > 0,
    lambda s: s.mean(0, keepdim=True), lambda s: s + 0j, lambda s: s.long(), lambda s: None,
    lambda s: s.tolist(), lambda s: s.detach().numpy(), lambda s: (s, s), lambda s: {"a": s}]
OTHERS = [small_net(2), nn.Linear(3, 3), nn.Module(), nn.ModuleList(), small_net(dtype=torch.half)]
WRONG = [Bad(net, "x|lower", True) for net in (*map(Answers, NO_LOGITS), *OTHERS)]
DYING = [plain_net(), Answers(lambda s: s * NAN)]
DYING[0][0].weight.data *= NAN
HOLLOW = [Bad(net, "", True, {}, (FloatingPointError, ValueError)) for net in DYING]
BLIND = Answers(lambda s: s)
BLIND.forward = torch.no_grad()(BLIND.forward)
UNMOVED = late([BLIND, Answers(Tensor.detach), Answers(lambda s: s, Tensor.detach)])
LAYERS = [nn.Tanh(), nn.BatchNorm2d(1, track_running_stats=False), nn.Softplus(), nn.MaxPool1d(2)]
MODULE = Kind(but("module"))
ANSWERING = MODULE.and_bad(*WRONG, *HOLLOW)
DIFFERENTIABLE = ANSWERING.and_bad(*UNMOVED)
KNOWN = DIFFERENTIABLE.and_bad(*late(LAYERS, lambda layer: nn.Sequential(layer, *PLAIN)))
NO_ATTACKS = [*but("class", "module", "none"), lambda x, y: x, mock.Mock(model=NET), advlib.fgsm]
TRIED = Kind([*NO_ATTACKS[:-1], lambda model, x, y: x])
NO_IMAGES = [*map(returning, [
    lambda x: x[1:], lambda x: x[..., :1], lambda x: x[None], lambda x: x.tolist(), lambda x: None,
    Tensor.numpy, lambda x: (x, x), Tensor.double, Tensor.int, lambda x: 0, lambda x: x > 0,
    lambda x: x.to("meta"), Tensor.to_sparse])]
TOO_FAR = [{"a": returning(lambda x: x + 0.2)}, {"a": returning(lambda x: x - 0.2)}]

def attacks(wrap: Any, *more: Any) -> Kind:
    run, fails = [*NO_IMAGES, returning(lambda x: x * NAN)], mock.Mock(side_effect=Breakdown)
    bad = [*more, *map(wrap, [*NO_ATTACKS, None]), *late(run, wrap)]
    return Kind([*bad, Bad(wrap(fails), ".*", True, {}, Breakdown)])
ATTACK = attacks(lambda attack: attack)
ATTACKS = attacks(lambda attack: [same, attack], *but("list"), (same, 3))
NO_NAMES = [{key: same} for key in ("none", "worst case", 1, None)]
NAMED = attacks(lambda attack: {"same": same, "b": attack}, *but(), *NO_NAMES, *late(TOO_FAR))
NO_BATCHES = [[], (), {}, X, [X, Y], (X, Y), [[X]], [(X, Y, Y)], "ab", b"a", {"x": X}, {3}]
SPOILED = [(getattr(b, "value", b), Y) for b in ANY_IMAGES.bad]
SPOILED += [(X, getattr(b, "value", b)) for b in LABELS.bad]
BATCHES = Kind(
    [*but("list", "dict", "set", "array", "tensor", "meta", "sparse", "words", "str", "bytes"),
     *late(NO_BATCHES), *(Bad([(X, Y), pair], "x|y|model", True) for pair in SPOILED)],
    lambda v: [tuple(v), [list(batch) for batch in v], Batches(X, Y)])
NO_FUNCTION = but("class", "function", "module")
DEVICES = ["abacus", "cuda:99", "", "cpu:-1", "CPU", "cpu cpu", "\0", "meta", torch.device("meta")]
DEVICE = Kind([*but(), *DEVICES], lambda v: [torch.device(v), "cpu:0"])
PATH = Kind(but("str", "path"), lambda v: [str(v)])
FILE = PATH.and_bad(Bad(FOREIGN, str(FOREIGN), True), Bad(FOLDER, ".*", True, {}, OSError))
CHANGES = Kind(
    [*but("array", "tensor"), at(NAN, X[:1]), X, X[:0], X[0], X[:1, :, 1:],
     X[:1].repeat(1, 2, 1, 1), X[:1].long(), X[:1].to("meta"), X[:1].numpy()[0]],
    lambda v: [v.numpy(), v.double()])
PATCHES = CHANGES.and_bad(X[:1] - 0.1, X[:1, :, 1:3], Bad(torch.zeros(1, 1, 5, 5), "size"))
CORNERS = Kind(
    [*but("none"), (1,), (0, 1, 2), (0.0, 1), (True, 0), (-1, 0), (0, -1), ("0", 0), 1, (0, NAN),
     *late([(3, 0), (0, 3), (10**30, 0)])], lambda v: [list(v), (np.int64(v[0]), v[1])])
NUMBERS = Kind(
    [*but("array", "tensor"), np.zeros((2, 2)), np.array(0.5),
     *([0.5, bad] for bad in (NAN, INF, "1", True, 1j, None, [1.0], 10**400))],
    lambda v: [tuple(v), np.array(v), torch.tensor(v), [np.float64(part) for part in v]])
MAYBE_NAN = Kind([*but("array", "tensor"), [0.5, "1"], [[1.0]], [None]], NUMBERS.same)
PER_CHANNEL = NUMBERS.and_bad([], (), np.zeros(0), Bad([0.5] * 3, "std|mean"))
NO_COURSES = [{}, {"fgsm": [0.5]}, {"pgd": [0.5]}, {"fgsm": [], "pgd": []}]
COURSES = Kind([*but(), *NO_COURSES, *({"fgsm": [0.5, 0.5], "pgd": bad} for bad in NUMBERS.bad)])

# The table: what the public functions take, each argument with a plain good value
ARGUMENTS: dict[str, tuple[Kind, Any]] = {
    "model": (DIFFERENTIABLE, NET), "x": (IMAGES, X), "y": (LABELS, Y),
    "batches": (BATCHES, [(X, Y)]), "attack": (ATTACK, same), "attacks": (ATTACKS, (same,)),
    **dict.fromkeys(("eps", "alpha"), (BUDGET, 0.125)),
    **dict.fromkeys(("steps", "restarts", "targets", "queries", "columns"), (count(), 2)),
    **dict.fromkeys(("noise", "beta", "weight", "fall"), (number(), 0.5)),
    **dict.fromkeys(("targeted", "with_images", "download", "stop"), (FLAG, False)),
    **dict.fromkeys(("random_start", "early_exit", "shuffle"), (FLAG, True)),
    **dict.fromkeys(("width", "channels"), (count(1, 10_000), 1)),
    **dict.fromkeys(("xlabel", "ylabel", "colour"), (Kind([]), "gray")),  # as matplotlib likes
    "area": (number(0, 1, above=True), 0.5), "gamma": (number(0, 1), 0.5),
    "progress": (number(0, 1), 0.5),
    "z": (number(0, 1e6), 2.0), "norm": (choice("linf", "l2"), "linf"),
    "loss": (choice("ce").and_bad("dlr-targeted", *late(["targeted-dlr"])), "ce"),
    "method": (choice("interval", "crown"), "crown"), "bounds": (BOUNDS, (0.0, 1.0)),
    "limits": (PAIR, (0.0, 1.0)), "generator": (Kind(but("generator")), torch.Generator),
    "device": (DEVICE, "cpu"), "seed": (count(0, 2**32 - 1), 1), "batch_size": (count(), 3),
    "successes": (count(0).and_bad(4), 2), "total": (count().and_bad(Bad(1, "successes")), 3),
    "lower": (pictures(X / 2).and_bad(at(2.0, X / 2)), X / 2),
    "upper": (pictures(X / 2 + 0.25).and_bad(Bad(X / 2 - 1, "lower")), X / 2 + 0.25),
    "metrics": (COURSES, {"fgsm": [0.5, 0.4], "pgd": [0.4, 0.4]}), "mean": (PER_CHANNEL, [0.5, 1]),
    "std": (PER_CHANNEL.and_bad([1, 0], [1, -1.0], [1e-60, 1.0]), [1.0, 0.5]),
    **dict.fromkeys(("classes", "size"), (count(2, 10_000), 3)), "values": (NUMBERS, [0.5, 0.25]),
    "path": (FILE.and_bad(Bad(FOLDER / "none", ".*", True, {}, OSError)), TRAINED),
    "titles": (Kind([*but("none"), ["a"], "abcd", ["a"] * 5]), list("abcd")),
    "losses": (MAYBE_NAN, [0.5, 0.25]), "iterations_per_epoch": (count(0), 1),
    "accuracies": (Kind([*but(), *({"a": b} for b in NUMBERS.bad), {"a": [1]}]), {"a": [0.5, 0.2]}),
    "intervals": (Kind([*but("none"), {"a": []}, {"b": [(0, 1)] * 2}]), {"a": [(0.1, 0.9)] * 2}),
    **dict.fromkeys(("degrees", "right", "down"), (SIGNED, 0.125)), "shift": (number(0, 4), 1.0),
    **dict.fromkeys(("turns", "shifts", "draws", "epochs"), (count(), 2)),
    "change": (CHANGES, X[:1]), "patch": (PATCHES, X[:1, :, :2, :2]),
    "corner": (CORNERS, (1, 0)), "target": (count(0).and_bad(Bad(3, "y", True)), None),
    "rows": (Kind([*but(), {"a": (2, 0, 1)}, {"a": (0.5, 1, 0)}, {"a": 1}]), {"a": (0.5, 0, 1)})}
NUMBER, ANSWER = (number(), 0.125), {"model": (ANSWERING, NET)}
REPORTED = {"attacks": (NAMED, {"same": same})}
PROVEN = {"model": (KNOWN, PLAIN), "eps": (number(), 1.0)}
UNASKED = {"model": (MODULE, NET), "x": (IMAGES.early(), X), "y": (LABELS.early(), Y)}
CLIMBING = {"eps": NUMBER, "alpha": NUMBER, "size": (count(1, 4), 2), "batches": (
    BATCHES.and_bad(*(Bad([(image, Y)], "x", True) for image in OUTSIDE)), [(X, Y)])}
CALM = {"model": (DIFFERENTIABLE, PLAIN)}  # run as it trains, where a BatchNorm may change
FOREIGN_ONE = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)  # of another model's weights
ALONE = {"lr": None, "momentum": 0.9, "weight_decay": 0.0}  # beside an optimizer
NO_OPTIMIZERS = [*NO_FUNCTION, torch.optim.LBFGS, FOREIGN_ONE, lambda weights: FOREIGN_ONE]
MORE: dict[str, dict[str, tuple[Kind, Any]]] = {
    "fmn": {"norm": (choice("l0", "l2", "linf"), "l2"), "alpha": NUMBER},
    "square": ANSWER | {"x": (IMAGES.and_bad(X.flatten(1), X[:, 0]), X)},
    **dict.fromkeys(("correct", "accuracy", "robust_accuracy", "mean_iou"), ANSWER),
    "predict": ANSWER | {"x": (ANY_IMAGES, X)}, "input_gradient": {"x": (ANY_IMAGES, X)},
    "spatial": ANSWER | {"x": (IMAGES.and_bad(X.flatten(1), X[:, 0]), X),
                         "degrees": (number(0, 180), 5.0)},
    "moved": {"x": (ANY_IMAGES.early().and_bad(X[0]), X)},
    **dict.fromkeys(("added", "pasted"), UNASKED),
    **dict.fromkeys(("universal", "patch"), CLIMBING),
    "evaluation_mode": {"model": (MODULE, NET)}, "pick_device": {"name": (DEVICE, "cpu")},
    "load_data": {"name": (choice("digits", "mnist"), "digits"), "root": (PATH, FOLDER)},
    "Batches": {"x": (ANY_IMAGES.early(), X), "y": (LABELS.early(), Y)},
    "robustness_report": REPORTED | {"eps": NUMBER, "seed": (count(0), 1)},
    "self_test": ANSWER | {"eps": NUMBER, "attack": (TRIED, lambda model, x, y, eps: x.clone())},
    **dict.fromkeys(("verify", "output_bounds", "verification.margin_bounds"), PROVEN),
    "verification.interval_logits": PROVEN | {"x": (IMAGES.early(), X)},
    "losses.interval_loss": PROVEN, "losses.trades_loss": CALM | {"eps": NUMBER, "alpha": NUMBER},
    "collapse.fgsm_against_pgd": {"eps": NUMBER},
    "load_checkpoint": {"model": (MODULE.and_bad(*late([small_net()])), plain_net)},
    "plots.show_images": {"x": (ANY_IMAGES.early().and_bad(X[0]), X)},
    "plots.show_predictions": ANSWER | {
        "x": (ANY_IMAGES, X), "y": (LABELS.early(), Y),  # it marks as wrong what is no class
        "classes": (Kind([*but("list"), *late([["a"] * int(Y[0])])]), list("abc"))},
    "fit": {  # of a training that changes nothing
        "model": (MODULE.and_bad(*WRONG, nn.Flatten(), UNMOVED[0]), plain_net),
        **dict.fromkeys(("lr", "momentum", "weight_decay"), (number(), 0.0)),
        "epochs": (count(), 1), "save_seconds": (number(), 60.0), "save_steps": (count(), None),
        "optimizer": (Kind([Bad(bad, others=ALONE) for bad in NO_OPTIMIZERS]), None),
        "schedule": (Kind([*NO_FUNCTION, *late([lambda p: NAN, lambda p: -1])]), None),
        "augment": (Kind([*NO_FUNCTION, *late([torch.sum, Tensor.tolist, Tensor.int])]), None),
        "loss": (Kind([*NO_FUNCTION, *late([lambda *batch: 1.0, lambda *batch: X])]), None),
        "attack": (Kind([*NO_ATTACKS, *late(NO_IMAGES)]), same),
        "precision": (Kind([*but(), torch.float32, torch.float64, "float16", torch.int8]), None),
        "evaluate": (Kind([*NO_FUNCTION, Bad(lambda net: 1, "what evaluate", True),
                           *late([lambda net: {"a": "1"}, lambda net: {"a": True}])]),
                     lambda net: {"a": 1.0}),
        "stop_when": (Kind([*NO_FUNCTION, Bad(len, "evaluate", others={"evaluate": None})]), None),
        "keep_best": (Kind([*but("str"), *late(["b"])]), "a"),
        "monitor": (Kind(but("function", "class", "module")), None), "checkpoint": (FILE, None)}}
# fmt: on
RESULTS = ("History", "Images", "Report", "Verification")  # made by advlib, not by its users
TO_CHANGE = ("fit", "load_checkpoint", "seed_everything")  # that is what they are for


PUBLIC = [name for name in advlib.__all__ if name not in RESULTS] + [
    f"{module.__name__.removeprefix('advlib.')}.{name}"
    for module in (collapse, losses, plots, verification)
    for name, value in inspect.getmembers(module, inspect.isfunction)
    if value.__module__ == module.__name__ and name[0] != "_" and name not in advlib.__all__
]
NAMES = {f: inspect.signature(operator.attrgetter(f)(advlib)).parameters for f in PUBLIC}
ROWS = {f: ARGUMENTS | MORE.get(f, {}) for f in NAMES}
TABLE = {f: {n: ROWS[f][n] for n in names if n in ROWS[f]} for f, names in NAMES.items()}
KINDS = {f: row["model"][0] for f, row in TABLE.items() if "model" in row}
CALLED = [f for f, kind in KINDS.items() if kind is ANSWERING or kind is DIFFERENTIABLE]


def good(function: str) -> dict[str, Any]:
    """Plain good arguments, of which nothing is shared that a call may change."""
    values = {name: value for name, (_, value) in TABLE[function].items()}
    return {n: v() if v is torch.Generator or v is plain_net else v for n, v in values.items()}


def bad_and_same(function: str, name: str) -> tuple[list[Bad], list[Any]]:
    """What is wrong for this argument, and what means the same as its good value."""
    (wrong, other), value = TABLE[function][name]
    found = [b if isinstance(b, Bad) else Bad(b) for b in wrong]
    if NAMES[function][name].default is None:  # then it is right
        found = [b for b in found if b.value is not None]
    return found, [] if value is None else other(value)


worked: list[Any] = []
FILES = [(data, "_read_shipped"), (checkpoint, "read"), (checkpoint, "write")]


@pytest.fixture(autouse=True, scope="module")
def watched() -> Iterator[None]:
    """Note what is done: calls of modules, and reading, drawing and writing."""
    with ExitStack() as stack:
        for owner, name in ((nn.Module, "__call__"), (plots, "_subplots"), *FILES):
            work = getattr(owner, name)
            noted = lambda *a, work=work, **k: worked.append(work) or work(*a, **k)  # noqa: E731
            stack.enter_context(mock.patch.object(owner, name, noted))
        yield


def facts(value: Any) -> Any:
    """All that a call could change in an argument that is no network."""
    if isinstance(value, Tensor):
        hollow = value.is_meta or value.layout != torch.strided
        grad = None if value.is_inference() or not value.is_leaf else value.grad
        rest = None if hollow else (value.stride(), value.data_ptr(), in_bytes(value.contiguous()))
        return value.shape, value.dtype, value.requires_grad, facts(grad), rest
    if isinstance(value, torch.Generator):
        return in_bytes(value.get_state())
    value = vars(value) if isinstance(value, Batches) else value
    if isinstance(value, (list, tuple, dict)):
        return type(value), [*map(facts, value.items() if isinstance(value, dict) else value)]
    return repr(value)


@contextmanager
def all_untouched(arguments: dict[str, Any], *, drawn: bool = False) -> Iterator[None]:
    """Arguments, modes and files must end as they began; generators too, unless `drawn` from."""
    kinds = torch.Generator if drawn else ()
    kept = {name: value for name, value in arguments.items() if not isinstance(value, kinds)}

    def state() -> Any:
        files = [(path.name, path.read_bytes()) for path in sorted(FOLDER.iterdir())]
        return facts(kept), facts(None if drawn else runtime.default_generator), files

    before = state()
    with ExitStack() as stack:
        for model in [v for v in kept.values() if isinstance(v, nn.Module)] or [nn.Identity()]:
            stack.enter_context(untouched(model))
        yield
    assert state() == before


def call(function: str, arguments: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = operator.attrgetter(function)(advlib)(**arguments)
    with found if function == "evaluation_mode" else nullcontext():
        return list(found) if isinstance(found, Batches) else found


def run(function: str, arguments: dict[str, Any]) -> Any:  # only what it is for may change
    with nullcontext() if function in TO_CHANGE else all_untouched(arguments, drawn=True):
        return call(function, arguments)


def refuse(function: str, arguments: dict[str, Any], wrong: dict[str, Bad]) -> None:
    """Call a function with what is wrong: the error names it, and nothing else happens."""
    arguments = arguments | {name: bad.value for name, bad in wrong.items()}
    for bad in wrong.values():
        arguments |= bad.others
    late = all(bad.late for bad in wrong.values())
    names = "|".join(n for name, bad in wrong.items() for n in (name, bad.names) if n)
    errors = {OSError, *(e for b in wrong.values() for e in np.atleast_1d(b.error))}
    given = {name: (type(b.value).__name__, str(b.value)[:60]) for name, b in wrong.items()}
    worked.clear()
    with all_untouched(arguments, drawn=late):
        try:
            found = call(function, arguments)
        except Exception as error:
            found = error
    assert isinstance(found, tuple(errors)), (given, found)
    assert re.match(rf"({names})(\b|\W|$)", str(found)), (given, found)
    assert late or not worked, ("work began", given)


@pytest.mark.parametrize("function", TABLE)
def test_every_argument_has_a_kind_and_the_good_one_is_taken(function):
    assert list(TABLE[function]) == list(NAMES[function])
    run(function, good(function))


@pytest.mark.parametrize(("function", "name"), [(f, name) for f in TABLE for name in TABLE[f]])
def test_bad_input_is_named_before_anything_is_touched(function, name):
    for wrong in bad_and_same(function, name)[0]:
        refuse(function, good(function), {name: wrong})


def agree(found: Any, expected: Any, loose: float = 1e-5) -> None:
    """Two results are the same, but for rounding, and for the time that they took."""
    if isinstance(expected, nn.Module):
        found, expected = found.state_dict(), expected.state_dict()
    if is_dataclass(expected):
        found, expected = (vars(o) | {"seconds": 0} for o in (found, expected))
    if isinstance(expected, dict):
        found, expected = list(found.items()), list(expected.items())
    if isinstance(expected, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            agree(one, other, loose)
    elif isinstance(expected, (Tensor, float)):
        difference = torch.as_tensor(found).double() - torch.as_tensor(expected).double()
        assert not difference.nan_to_num(0).detach().abs().mean() > loose
    elif isinstance(expected, (bool, int, str)):
        assert found == expected


@pytest.mark.parametrize("function", TABLE)
def test_other_forms_mean_the_same(function):
    expected = run(function, good(function))
    for name in TABLE[function]:
        for value in bad_and_same(function, name)[1]:
            runtime.default_generator.manual_seed(0)
            agree(run(function, good(function) | {name: value}), expected)


@pytest.mark.parametrize("function", advlib.attacks.__all__)
def test_attacks_take_other_precisions_and_gradient_modes(function):
    # numbers drawn in another precision are others
    again = {"random_start": False, "draws": None}
    again = {name: value for name, value in again.items() if name in NAMES[function]}
    expected = run(function, good(function) | again)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = {"model": small_net(dtype=dtype), "x": X.to(dtype), "batches": [(X.to(dtype), Y)]}
        other = {name: value for name, value in other.items() if name in NAMES[function]}
        arguments = good(function) | other | again
        agree(run(function, arguments), expected, 0.01 if "random_start" in again else 0.1)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            agree(run(function, good(function) | again), expected, 0.01)


def test_no_attacks_at_all_are_fine():
    assert advlib.robust_accuracy(NET, [(X, Y)], attacks=[]) == advlib.accuracy(NET, [(X, Y)])


@pytest.mark.parametrize("function", CALLED)
def test_an_error_of_the_model_passes_through_and_leaves_no_trace(function):
    failures, arguments = 0, good(function)
    for k in (0, 1, 2, 3, 5, 9, 100):
        failed = arguments | {"model": FailsAfter(arguments["model"], k)}
        with all_untouched(failed, drawn=True), suppress(Breakdown):
            failures += 1
            call(function, failed)
            failures -= 1
    assert failures


@pytest.mark.slow
def test_10_000_calls_of_good_and_bad_arguments():
    source, refused, calls = random.Random(0), 0, 10_000
    for _ in range(calls):
        function = source.choice(list(TABLE))
        arguments, wrong = good(function), {}
        for name in source.sample(list(arguments), min(len(arguments), source.randint(1, 4))):
            found, other = bad_and_same(function, name)
            chosen = source.choice(found) if found and source.random() < 0.7 else None
            if chosen and not any(chosen.late and one.late for one in wrong.values()):
                wrong[name] = chosen  # two late ones may fit together: images, and a model of them
            elif other:
                arguments[name] = source.choice(other)
        if wrong:
            refuse(function, arguments, wrong)
            refused += 1
        else:
            run(function, arguments)
    print(f"\n{calls:,} calls of {len(TABLE)} functions, {refused:,} of them refused")
