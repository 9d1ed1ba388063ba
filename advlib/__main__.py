"""Command line: train by a recipe, alone or with torchrun, and measure the book's numbers again.

`python -m advlib train` trains, `torchrun --nproc-per-node=2 -m advlib train` does so by two
processes. `python -m advlib networks` trains what ships with advlib again. `results` trains and
attacks for the book, `report` attacks more strongly, `sandwich` proves; these three want to be run
from the root of the book's repository.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advlib import (
    Batches,
    distributed,
    load_data,
    pgd,
    recipes,
    robustness_report,
    trained,
    verify,
    wilson_interval,
)
from advlib.monitor import progress
from advlib.runtime import Attack
from advlib.verification import margin_bounds


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(prog="python -m advlib", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    training = commands.add_parser("train", help="train by a recipe, and go on after a crash")
    training.add_argument("--recipe", choices=list(recipes.NAMED), default="fast")
    for name, kind in TRAINING.items():
        training.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of its own")
    training.add_argument("--data", default="data", help="folder of torchvision's data sets")
    training.add_argument("--download", action="store_true", help="fetch them first")
    training.add_argument("--checkpoint", type=Path, help="default: RECIPE.pt")
    training.add_argument("--save-seconds", type=float, default=60.0)
    results = commands.add_parser("results", help="train, attack, and write book/results.json")
    results.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    report = commands.add_parser("report", help="robustness reports, into book/reports.json")
    report.add_argument("--images", type=int, default=1000)
    between = commands.add_parser("sandwich", help="attacks and proofs, into book/sandwich.json")
    between.add_argument("--images", type=int, default=100)
    networks = commands.add_parser("networks", help="train what ships with advlib again")
    networks.add_argument("--only", nargs="+", choices=list(recipes.SHIPPED), metavar="NAME")
    networks.add_argument("--check", action="store_true", help="compare, and write nothing")
    for command in (training, results, report, between, networks):
        command.add_argument("--device", help="cpu, cuda, ... (default: the best one present)")
    for command, out in ((results, "results"), (report, "reports"), (between, "sandwich")):
        command.add_argument("--out", type=Path, default=Path(f"book/{out}.json"))
    arguments = parser.parse_args()
    if arguments.command == "train":
        train(arguments)
        return
    if arguments.command == "networks":
        names = arguments.only or list(recipes.SHIPPED)
        differ = trained.make(names, device=arguments.device, check=arguments.check)
        if differ:
            print(f"more than {trained.MARGIN} from what ships: {', '.join(differ)}")
        sys.exit(bool(differ) and arguments.check)
    if not arguments.out.parent.is_dir():
        parser.error(f"--out: {arguments.out.parent} is not a folder; run this from the root")
    if arguments.command == "results":
        found = recipes.results(arguments.seeds, device=arguments.device)
        print(recipes.results_table(found))
    elif arguments.command == "report":
        found = reports(arguments.images, arguments.device)
    else:
        found = sandwich(arguments.images, arguments.device)
    partial_file = arguments.out.with_suffix(".partial")
    partial_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    os.replace(partial_file, arguments.out)


TRAINING = {"seed": int, "images": int, "epochs": int, "batch_size": int, "lr": float}


def train(arguments: argparse.Namespace) -> None:
    """Train by a recipe, in as many processes as torchrun started, and test the network."""
    given = {name: getattr(arguments, name) for name in TRAINING}
    recipe = replace(
        recipes.NAMED[arguments.recipe], **{k: v for k, v in given.items() if v is not None}
    )
    checkpoint = arguments.checkpoint or Path(f"{arguments.recipe}.pt")
    with distributed.joined(arguments.device) as device:
        first = distributed.rank() == 0
        if arguments.download and first:
            load_data(recipe.data, device="cpu", root=arguments.data, download=True)
        distributed.from_first(None)  # the others wait for the files
        train_set, test_set = load_data(recipe.data, device=device, root=arguments.data)
        net: nn.Module = recipe.net()
        if device.type == "cuda":  # BatchNorm over the whole batch; torch has it on GPUs only
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        net.to(device)
        history = recipe.fit(
            net,
            train_set,
            evaluate=recipe.watch(test_set),
            monitor=progress() if first else None,
            checkpoint=checkpoint,
            save_seconds=arguments.save_seconds,
        )
        batches = Batches(test_set.x, test_set.y)
        generator = torch.Generator(device)
        attacks: dict[str, Attack | None] = {"clean": None}
        if recipe.eps:
            attacks["pgd"] = partial(
                pgd, eps=recipe.eps, alpha=recipe.eps / 4, steps=20, generator=generator
            )
        for name, attack in attacks.items():
            right = int(distributed.correct(net, batches, attack=attack).sum())
            low, high = wilson_interval(right, len(test_set.x))
            if first:
                print(f"{name}: {right} of {len(test_set.x)} right, {low:.4f} to {high:.4f}")
        if first:
            print(f"loss: {history.loss[-1]!r}, network: {checkpoint}")


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


BUDGETS = [0.01, 0.02, 0.03, 0.05, 0.1, 0.15]


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
            lines[name]["attack"].append(round(1 - found.violated.float().mean().item(), 4))
            lines[name]["CROWN"].append(round(found.certified_accuracy, 4))
            lines[name]["intervals"].append(round(by_intervals.float().mean().item(), 4))
            print(f"{name}, eps {eps}: {found}, {int(by_intervals.sum())} by intervals", flush=True)
    made = {"images": images, "machine": recipes.machine(device), "torch": torch.__version__}
    return {**made, "eps": BUDGETS, "networks": lines}


if __name__ == "__main__":
    main()
