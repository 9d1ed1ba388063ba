"""The book's recipes: what is trained, with which attack, and the numbers that come out."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advlib import losses
from advlib.attacks import bim, fgsm, pgd
from advlib.book.parts import (
    deep_net,
    grad_align_loss,
    preact_resnet18,
    relabelled,
    shifted,
    with_noise,
)
from advlib.book.segmentation import unet, watch_maps
from advlib.checks import Attack, Bounds, check_choice, check_device
from advlib.collapse import fgsm_against_pgd
from advlib.data import Batches, Images, load_data
from advlib.evaluation import accuracy
from advlib.models import digit_net
from advlib.training import History, Loss, TrainingMonitor, cyclic, fit

EPS = 0.1
MAPS_EPS = 0.05  # of the scenes
MAPS_BIM = partial(bim, eps=MAPS_EPS, alpha=MAPS_EPS / 10, steps=20)
METHODS = ("fgsm", "pgd", "trades", "grad-align", "interval", "noise")
NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "digit-net": digit_net,
    "deep-net": deep_net,
    "preact-resnet18": preact_resnet18,
    "unet": unet,
}
BIM = partial(bim, eps=EPS, alpha=0.01, steps=20)
# the source's own attacks: pixels never clipped, and another step size for the robust network
PRINTED_BIM = {
    "standard": partial(bim, eps=EPS, alpha=0.01, steps=20, bounds=None),
    "robust": partial(bim, eps=EPS, alpha=0.125, steps=20, bounds=None),
}
PGD = partial(pgd, eps=EPS, alpha=0.02, steps=20, restarts=5, early_exit=True)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained, on the shipped digits or other `data`. `eps=0` is standard.

    Otherwise `method` says how: "fgsm" attacks each batch by one step of size `alpha`, inside
    `eps`, from a random start or none, clipped to `bounds` or not; "pgd" by `steps` steps, together
    2.5 eps long; "trades" and "interval" as in `advlib.losses`, "grad-align" as in
    `advlib.book.parts`; "noise" adds Gaussian noise of standard deviation `eps` instead. With
    `cyclic`, `lr` is the peak of `advlib.cyclic`. `augment` shifts and mirrors the images.
    `precision` "mixed" computes in half precision where that is safe: float16 on CUDA, bfloat16
    elsewhere. `start` names a network of `advlib.book.trained` to begin from, instead of random
    weights. `relabel` is a budget: the standard network attacks the images within it towards random
    labels, and those are learned; see `advlib.book.parts.relabelled`. With `random_labels` the same
    labels are learned where that budget is 0, and the images stay as they are.
    """

    seed: int = 0
    images: int = 5000
    epochs: int = 30
    batch_size: int = 100
    lr: float = 0.01
    momentum: float = 0.9
    eps: float = 0.0
    alpha: float = 0.0
    random_start: bool = True
    bounds: Bounds = (0.0, 1.0)
    cyclic: bool = False
    method: str = "fgsm"
    data: str = "digits"
    network: str = "digit-net"
    weight_decay: float = 0.0
    augment: bool = False
    precision: str = "float32"
    steps: int = 10
    start: str = ""
    relabel: float = 0.0
    random_labels: bool = False

    def __post_init__(self) -> None:
        """Refuse words that would silently mean something else; `fit` checks the numbers."""
        check_choice("method", self.method, METHODS)
        check_choice("precision", self.precision, ("float32", "mixed"))

    def net(self) -> nn.Sequential:
        """Return the network before training, on the CPU."""
        if self.start:
            from advlib.book import trained  # it imports this module

            return trained.network(self.start, device="cpu")
        return NETWORKS[self.network](generator=torch.Generator().manual_seed(self.seed))

    def watch(self, test_set: Images) -> Callable[[nn.Module], dict[str, float]] | None:
        """Return what adversarial training is watched by, on 200 test images; maps always are."""
        if self.data == "scenes":
            return partial(watch_maps, x=test_set.x[:25], y=test_set.y[:25], eps=MAPS_EPS)
        x, y = test_set.x[:200], test_set.y[:200]
        watched = self.eps and self.method != "noise"
        return partial(fgsm_against_pgd, x=x, y=y, eps=self.eps) if watched else None

    def attack(self, generator: torch.Generator) -> Attack | None:
        """Return the attack of this training, drawing from `generator`; None if it needs none."""
        ball: dict[str, Any] = {"eps": self.eps, "bounds": self.bounds, "generator": generator}
        if self.eps == 0 or self.method not in ("fgsm", "pgd", "noise"):
            return None
        if self.method == "noise":
            return partial(with_noise, sigma=self.eps, generator=generator)
        if self.method == "pgd":
            return partial(pgd, **ball, alpha=2.5 * self.eps / self.steps, steps=self.steps)
        return partial(fgsm, **ball, alpha=self.alpha, random_start=self.random_start)

    def loss(self, generator: torch.Generator) -> Loss | None:
        """Return the loss of this training, drawing from `generator`; None for cross-entropy."""
        if self.eps == 0:
            return None
        if self.method == "trades":
            return partial(
                losses.trades_loss,
                eps=self.eps,
                alpha=self.eps / 4,
                bounds=self.bounds,
                generator=generator,
            )
        if self.method == "grad-align":
            attack: Any = replace(self, method="fgsm").attack(generator)
            return partial(
                grad_align_loss, attack=attack, eps=self.eps, weight=1.0, generator=generator
            )
        if self.method == "interval":
            return partial(losses.interval_loss, eps=self.eps, bounds=self.bounds)
        return None

    def fit(self, net: nn.Module, train_set: Images, **options: Any) -> History:
        """Train `net` on the first images of `train_set`; `options` as in `advlib.fit`."""
        generator = torch.Generator().manual_seed(self.seed)
        x, y = train_set.x[: self.images], train_set.y[: self.images]
        if self.relabel or self.random_labels:
            from advlib.book import trained  # it imports this module

            standard = trained.network("standard", device=x.device)
            x, y = relabelled(standard, x, y, eps=self.relabel, generator=generator)
        half = torch.float16 if x.is_cuda else torch.bfloat16
        return fit(
            net,
            Batches(x, y, batch_size=self.batch_size, shuffle=True, generator=generator),
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=cyclic if self.cyclic else None,
            augment=partial(shifted, generator=generator) if self.augment else None,
            precision=half if self.precision == "mixed" else None,
            attack=self.attack(generator),
            loss=self.loss(generator),
            **options,
        )


STANDARD = Recipe()
ROBUST = Recipe(eps=EPS, alpha=1.25 * EPS)
# as robust as ROBUST in a fraction of its time, and more robust in half of it
FAST = replace(ROBUST, epochs=4, batch_size=50, lr=0.1, cyclic=True)
FAST_LONG = replace(FAST, epochs=15)
# its robustness can be proven (chapter 9)
PROVABLE = Recipe(eps=EPS, method="interval", epochs=8, batch_size=50, lr=0.05)
# to be certified by sampling (chapter 12)
NOISY = replace(FAST, eps=0.25, method="noise", epochs=8)
# knows the digits from what an attack added alone (chapter 11)
RELABELLED = Recipe(relabel=EPS, epochs=6, batch_size=50, lr=0.05, cyclic=True)
# too few images: robust on them and not on others (the page "Train on")
SMALL_SET = replace(ROBUST, images=500, epochs=60, batch_size=50, lr=0.02, method="pgd", steps=4)
# a label for each pixel (chapter 16)
SCENES = Recipe(data="scenes", network="unet", images=900, epochs=40, batch_size=10, lr=0.2)
SCENES = replace(SCENES, cyclic=True)
SCENES_ROBUST = replace(SCENES, eps=MAPS_EPS, alpha=1.25 * MAPS_EPS)
# after Wong et al., ICLR 2020, arXiv:2001.03994
CIFAR10 = Recipe(
    data="cifar10",
    network="preact-resnet18",
    images=50_000,
    epochs=15,
    batch_size=128,
    lr=0.2,
    weight_decay=5e-4,
    eps=8 / 255,
    alpha=10 / 255,
    cyclic=True,
    augment=True,
    precision="mixed",
)
# what the random start and the longer step are worth (chapter 5)
BRIEF = replace(FAST_LONG, images=2000)
# a deeper network, and what becomes of it without the random start, and with each cure (chapter 8)
DEEP = replace(FAST, network="deep-net", images=2000, epochs=12)
FURTHER = replace(DEEP, start="deep", images=5000, lr=0.01, cyclic=False)
VARIANTS = {
    "brief": BRIEF,
    "brief-no-start": replace(BRIEF, alpha=EPS, random_start=False),
    "brief-step-of-eps": replace(BRIEF, alpha=EPS),
    "no-start": replace(FURTHER, alpha=EPS, random_start=False),
    "random-start": FURTHER,
    "trades": replace(FURTHER, method="trades"),
    "grad-align": replace(FURTHER, method="grad-align", alpha=EPS, random_start=False),
    "few-steps": replace(FURTHER, method="pgd", steps=2),
    "relabelled": RELABELLED,
    "control": replace(RELABELLED, relabel=0.0, random_labels=True),
    "small-set": SMALL_SET,
}
SEEDED = {
    f"{name}-{seed}": replace(recipe, seed=seed)
    for name, recipe in VARIANTS.items()
    for seed in (0, 1, 2)
}
# "collapsed" is "no-start-0" at its worst
SHIPPED = (
    {"standard": STANDARD, "robust": ROBUST, "provable": PROVABLE, "fast": FAST}
    | {"fast-long": FAST_LONG, "deep": DEEP, "noisy": NOISY}
    | {"scenes": SCENES, "scenes-robust": SCENES_ROBUST}
    | {"collapsed": replace(SEEDED["no-start-0"], epochs=10)}
    | SEEDED
)
"""What `advlib.book.trained` has ready, and `make networks` trains again."""
HALF = (
    *("fast", "fast-long", "deep", "noisy", "scenes", "scenes-robust", "collapsed"),
    *(name for name in SEEDED if name.startswith(("no-start", "random-start", "relabelled"))),
)
"""Of these the weights are kept in half precision."""
HISTORIES = tuple(name for name in SEEDED if name not in HALF)
"""Of these only the history is kept."""


def train(
    recipe: Recipe,
    *,
    device: str | None = None,
    monitor: TrainingMonitor | None = None,
    checkpoint: str | Path | None = None,
    watched: bool = True,
) -> tuple[nn.Sequential, History]:
    """Train a network by `recipe`; also return its history. `advlib.book.trained` has some ready.

    `checkpoint` is a file that the training is saved in while it runs, so that the same call goes
    on after a crash; see `advlib.fit`.

    Adversarial training is watched: History.metrics holds "fgsm" and "pgd", the accuracies after
    each epoch on 200 test images under one step and under a 10-step PGD. The watch draws from a
    generator of its own, and so changes nothing about the network; `watched=False` saves its time.

    A run that is interrupted returns the network trained so far.
    """
    target = check_device("device", device)
    net = recipe.net().to(target)
    train_set, test_set = load_data(recipe.data, device=target)
    watch = recipe.watch(test_set) if watched else None
    return net, recipe.fit(net, train_set, evaluate=watch, monitor=monitor, checkpoint=checkpoint)


def results(seeds: Sequence[int] = (0, 1, 2), *, device: str | None = None) -> dict[str, Any]:
    """Train and attack every network of the book; return the content of book/results.json.

    "printed" follows the source with its slips, in training and testing; "corrected" is ours. The
    networks of seed 0 that ship are taken as they are.
    """
    from advlib.book import trained  # it imports this module

    found: dict[str, Any] = {
        "seeds": list(seeds),
        "machine": machine(device),
        "torch": torch.__version__,
        "printed": {},
        "corrected": {},
    }
    test_set = load_data("digits", device=device)[1]
    batches = Batches(test_set.x, test_set.y)
    nets = {SHIPPED[kind]: trained.network(kind, device=device) for kind in ("standard", "robust")}
    for protocol, kind, recipe, tests in protocols():
        rows: dict[str, list[float]] = {name: [] for name in tests}
        for seed in seeds:
            seeded = replace(recipe, seed=seed)
            if seeded not in nets:
                nets[seeded], history = train(seeded, device=device)
                if history.stopped:
                    raise KeyboardInterrupt  # half-trained networks have no place in the results
            net = nets[seeded]
            for name, attack in tests.items():
                if name == "pgd" and isinstance(attack, partial):  # whatever was drawn before
                    attack = partial(attack, generator=torch.Generator().manual_seed(seed))
                rows[name].append(accuracy(net, batches, attack=attack))
                print(f"{protocol} {kind}, seed {seed}, {name}: {rows[name][-1]:.4f}", flush=True)
        found[protocol][kind] = rows
    return found


def machine(device: str | None) -> str:
    """Say what a training on `device` runs on."""
    if check_device("device", device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} CPU threads"


def protocols() -> list[tuple[str, str, Recipe, dict[str, Attack | None]]]:
    """List (protocol, network, recipe, tests by name): all that `results` measures."""
    unclipped = replace(ROBUST, bounds=None)
    corrected: dict[str, Attack | None] = {"clean": None, "bim": BIM, "pgd": PGD}
    return [
        ("printed", "standard", STANDARD, {"clean": None, "bim": PRINTED_BIM["standard"]}),
        ("printed", "robust", unclipped, {"clean": None, "bim": PRINTED_BIM["robust"]}),
        ("corrected", "standard", STANDARD, corrected),
        ("corrected", "robust", ROBUST, corrected),
    ]


def results_table(found: dict[str, Any]) -> str:
    """Write results as the Markdown table of README and chapter 6: mean and range over seeds."""

    def cell(protocol: str, kind: str, name: str) -> str:
        values = found[protocol][kind].get(name)
        if values is None:
            return "-"
        mean = sum(values) / len(values)
        return f"{mean:.4f} ({min(values):.4f}-{max(values):.4f})"

    lines = [
        "| protocol | training | clean accuracy | under BIM | under PGD, worst of 5 restarts |",
        "|---|---|---|---|---|",
    ]
    for protocol in ("printed", "corrected"):
        for kind in ("standard", "robust"):
            cells = " | ".join(cell(protocol, kind, name) for name in ("clean", "bim", "pgd"))
            lines.append(f"| {protocol} | {kind} | {cells} |")
    return "\n".join(lines) + "\n"


def reports_table(found: dict[str, Any]) -> str:
    """Write book/reports.json as a Markdown table: accuracy under each attack, and its interval."""
    names = list(found)
    images = {report["images"] for report in found.values()}
    lines = [
        f"| attack, {' or '.join(map(str, images))} images | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for rows in zip(*(found[name]["rows"] for name in names), strict=True):
        cells = (
            f"{row['accuracy']:.3f} ({row['interval'][0]:.3f}-{row['interval'][1]:.3f})"
            for row in rows
        )
        lines.append(f"| {rows[0]['attack']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
