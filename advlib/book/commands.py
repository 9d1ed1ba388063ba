"""What the book ships and shows, made again: run these from the root of the book's repository.

`networks` trains what ships in `advlib.book.trained`. `results` trains and attacks, `report`
attacks more strongly, `sandwich` and `smoothing` prove, and `minimum` looks for the smallest
changes, for the numbers in the book's JSON files.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from advlib import bim, ddn, fmn, load_data, predict, robustness_report, verify
from advlib.attacks.minimum import ORDER
from advlib.book import recipes, trained
from advlib.book.smoothing import Smoothed, certify, votes
from advlib.evaluation import _mean
from advlib.runtime import pick_device
from advlib.verification import margin_bounds

TEST_IMAGES = 5000
BUDGETS = [0.01, 0.02, 0.03, 0.05, 0.1, 0.15]
RADII = [0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 0.6, 1.0, 1.5]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Leave out the usage, which `--help` shows."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def main() -> None:
    """Parse the arguments and run the command."""
    parser = Parser(prog="python -m advlib", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    networks = commands.add_parser("networks", help="train what ships with advlib again")
    networks.add_argument("--only", nargs="+", choices=list(recipes.SHIPPED), metavar="NAME")
    networks.add_argument("--check", action="store_true", help="compare, and write nothing")
    results = commands.add_parser("results", help="train, attack, and write book/results.json")
    results.add_argument("--seeds", type=whole(0, 2**32 - 1), nargs="+", default=[0, 1, 2])
    report = commands.add_parser("report", help="robustness reports, into book/reports.json")
    report.add_argument("--images", type=whole(1, TEST_IMAGES), default=1000)
    between = commands.add_parser("sandwich", help="attacks and proofs, into book/sandwich.json")
    between.add_argument("--images", type=whole(1, TEST_IMAGES), default=500)
    chance = commands.add_parser("smoothing", help="certified by noise, into book/smoothing.json")
    chance.add_argument("--images", type=whole(1, TEST_IMAGES), default=500)
    least = commands.add_parser("minimum", help="smallest changes, into book/minimum.json")
    least.add_argument("--images", type=whole(1, TEST_IMAGES), default=500)
    made = {"results": results, "reports": report, "sandwich": between, "smoothing": chance}
    made["minimum"] = least
    for out, command in made.items():
        command.add_argument("--out", type=output, default=f"book/{out}.json")
    for command in (networks, *made.values()):
        command.add_argument(
            "--device", type=present, help="cpu, cuda, ... (default: the best one present)"
        )
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.command == "networks":
        names = arguments.only or list(recipes.SHIPPED)
        differ = trained.make(names, device=device, check=arguments.check)
        if differ:
            print(f"more than {trained.MARGIN} from what ships: {', '.join(differ)}")
        sys.exit(bool(differ) and arguments.check)
    if arguments.command == "results":
        found = recipes.results(arguments.seeds, device=device)
        print(recipes.results_table(found))
    elif arguments.command == "report":
        found = reports(arguments.images, device)
    elif arguments.command == "sandwich":
        found = sandwich(arguments.images, device)
    elif arguments.command == "smoothing":
        found = smoothing(arguments.images, device)
    else:
        found = minimum(arguments.images, device)
    unfinished = arguments.out.with_suffix(".partial")
    unfinished.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, arguments.out)


def whole(least: int, most: int) -> Callable[[str], int]:
    """An option's type: whole numbers of this range."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            wanted = f"must be a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{wanted}, got {text!r}")
        return number

    return convert


def present(text: str) -> str:
    """An option's type: a device of this machine, by its name."""
    try:
        return str(pick_device(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no device {text!r} on this machine") from error


def output(text: str) -> Path:
    """An option's type: a file that can be written, in a folder that is there."""
    path = Path(text)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"can't write {text!r} (run this from the root?)")
    return path


def reports(images: int, device: str | None) -> dict[str, Any]:
    """Report on both networks of chapter 6, on the first test images, at the book's eps."""
    test = load_data(device=device)[1]
    found = {}
    for kind in ("standard", "robust"):
        net = trained.network(kind, device=device)
        report = robustness_report(net, test.x[:images], test.y[:images], eps=recipes.EPS)
        print(f"{kind}: {report}\n", flush=True)
        found[kind] = json.loads(report.to_json())
        del found[kind]["broken_by"]  # the table counts it, and it would be a line per image
    return found


def sandwich(images: int, device: str | None) -> dict[str, Any]:
    """Bound the robust accuracy of chapter 9's networks from both sides, on the first test images.

    Above lies what an attack leaves, below what CROWN and what intervals alone can prove.
    """
    test = load_data(device=device)[1]
    x, y = test.x[:images], test.y[:images]
    lines: dict[str, dict[str, list[float]]] = {}
    for name in ("standard", "robust", "provable"):
        net = trained.network(name, device=device)
        lines[name] = {"attack": [], "CROWN": [], "intervals": []}
        for eps in BUDGETS:
            found = verify(net, x, y, eps)
            by_intervals = margin_bounds(net, x, y, eps, method="interval") > 0
            lines[name]["attack"].append(_share(~found.violated))
            lines[name]["CROWN"].append(round(found.certified_accuracy, 4))
            lines[name]["intervals"].append(_share(by_intervals))
            print(f"{name}, eps {eps}: {found}, {int(by_intervals.sum())} by intervals", flush=True)
    made = {"images": images, "machine": recipes.machine(device), "torch": torch.__version__}
    return {**made, "eps": BUDGETS, "networks": lines}


def smoothing(images: int, device: str | None) -> dict[str, Any]:
    """Certify chapter 12's networks on the first test images: by votes under noise, and by CROWN.

    A line has a fraction of the images for each of `RADII`, which is the size of an l2 ball or of
    an linf ball; what CROWN proves of the latter holds for the former. The attack is on the
    smoothed network, in l2, and is judged by 100 votes; it has none for the smallest radii.
    """
    test = load_data(device=device)[1]
    x, y = test.x[:images], test.y[:images]
    noisy, provable = (trained.network(name, device=device) for name in ("noisy", "provable"))
    sigma, samples, draw = recipes.NOISY.eps, 1000, torch.Generator().manual_seed(0)
    answers, radii = certify(noisy, x, sigma=sigma, samples=samples, generator=draw)
    right = answers == y
    across = x[0].numel() ** 0.5  # an l2 ball of this radius holds a box of half-width 1
    lines: dict[str, list[float | None]] = {
        "smoothing, l2": [_share(right & (radii > size)) for size in RADII],
        "smoothing, linf": [_share(right & (radii > across * size)) for size in RADII],
        "CROWN, provable": _proven(provable, x, y),
        "CROWN, noisy": _proven(noisy, x, y),
        "attack, l2": [None] * len(RADII),
    }
    broken = torch.zeros_like(right)
    for i, size in enumerate(RADII):
        if size >= 0.25:
            target = Smoothed(noisy, sigma=sigma, draws=8)
            found = bim(target, x, y, eps=size, alpha=size / 4, steps=10, norm="l2")
            counts = votes(noisy, found, sigma=sigma, samples=100, generator=draw)
            wrong = counts.argmax(1) != y
            broken |= wrong & right & (radii > size)
            lines["attack, l2"][i] = _share(~wrong)
            print(f"l2 radius {size}: {int(wrong.sum())} of {images} broken", flush=True)
    made = {"images": images, "machine": recipes.machine(device), "torch": torch.__version__}
    counted = {
        "abstained": int((answers < 0).sum()),
        "certified and misread": int(((answers != y) & (answers >= 0)).sum()),
        "certified and broken": int(broken.sum()),
    }
    return {**made, "samples": samples, **counted, "radii": RADII, "lines": lines}


def minimum(images: int, device: str | None) -> dict[str, Any]:
    """Look for the smallest change of each of the first test images, in three norms.

    A size is 0 where the image is wrong already, and None where no change was found.
    """
    test = load_data(device=device)[1]
    x, y = test.x[:images], test.y[:images]
    norms: dict[str, Any] = {
        "linf": partial(fmn, norm="linf"),
        "l2": ddn,
        "l0": partial(fmn, norm="l0"),
    }
    sizes: dict[str, dict[str, list[float | None]]] = {}
    for name in ("standard", "robust", "noisy"):
        net = trained.network(name, device=device)
        sizes[name] = {}
        for norm, attack in norms.items():
            x_adv = attack(net, x, y)
            broken = (predict(net, x_adv) != y).tolist()
            found = (x_adv - x).flatten(1).norm(ORDER[norm], dim=1).tolist()
            sizes[name][norm] = [
                round(size, 4) if hit else None for size, hit in zip(found, broken, strict=True)
            ]
            print(f"{name}, {norm}: {sum(broken)} of {images} broken", flush=True)
    made = {"images": images, "machine": recipes.machine(device), "torch": torch.__version__}
    return {**made, "sizes": sizes}


def _share(which: Tensor) -> float:
    return round(_mean(which), 4)


def _proven(net: nn.Module, x: Tensor, y: Tensor) -> list[float | None]:
    """Fractions of the images that CROWN proves for each of `RADII` and all smaller ones."""
    left, shares = torch.arange(len(x), device=x.device), list[float | None]()
    for size in RADII:
        if len(left):
            left = left[margin_bounds(net, x[left], y[left], size) > 0]
        shares.append(round(len(left) / len(x), 4))
        print(f"linf eps {size}: {len(left)} of {len(x)} proven", flush=True)
    return shares
