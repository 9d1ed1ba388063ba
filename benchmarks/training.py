"""What adversarial training costs, and how soon it gets where the source's recipe ends."""

from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advlib import Batches, accuracy, digit_net, fit, load_data, recipes
from benchmarks import common
from benchmarks.worker import timed


def main(device: torch.device, rounds: int, seeds: list[int]) -> None:
    """Measure, print and save."""
    costs = _costs(device, rounds)
    runs = [
        _run(name, replace(recipe, seed=seed), device)
        for seed in seeds
        for name, recipe in recipes_compared().items()
    ]
    common.save(
        "training", device, {"rounds": rounds, **costs, "runs": runs, "summary": _summary(runs)}
    )


def recipes_compared() -> dict[str, recipes.Recipe]:
    """The source's recipe, and ours: one as good in less time, one better in half of it."""
    return {"source": recipes.ROBUST, "fast": recipes.FAST, "long": recipes.FAST_LONG}


def _costs(device: torch.device, rounds: int) -> dict[str, Any]:
    """Time of one epoch each: standard, adversarial, and both in a plain PyTorch loop."""
    train, _ = load_data(device=device)
    host = load_data(device="cpu")[0]

    def ours(recipe: recipes.Recipe) -> None:
        generator = torch.Generator().manual_seed(0)
        net = digit_net(generator=generator).to(device)
        batches = Batches(train.x, train.y, shuffle=True, generator=generator)
        fit(net, batches, epochs=1, lr=recipe.lr, attack=recipe.attack(generator))

    tasks: common.Tasks = {
        "standard": partial(ours, recipes.STANDARD),
        "adversarial": partial(ours, recipes.ROBUST),
        "plain standard": partial(_plain_epoch, host, device, adversarial=False),
        "plain adversarial": partial(_plain_epoch, host, device, adversarial=True),
    }
    times = common.in_turns(tasks, rounds, device)
    found: dict[str, Any] = {
        "adversarial_over_standard": common.ratio(times, "adversarial", "standard"),
        "plain_over_ours_standard": common.ratio(times, "plain standard", "standard"),
        "plain_over_ours_adversarial": common.ratio(times, "plain adversarial", "adversarial"),
        "epoch_s": {name: median(values) for name, values in times.items()},
    }
    print(f"one epoch of {len(train.x)} images, {common.device_name(device)}")
    common.table(["", "s"], [[name, f"{median(t):.2f}"] for name, t in times.items()])
    for name in list(found)[:3]:
        print(f"{name}: {found[name]:.2f}")
    return found


def _plain_epoch(host: Any, device: torch.device, *, adversarial: bool) -> None:
    """The loop as most tutorials write it: a DataLoader, torch's default layout, autograd."""
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 10),
    ).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    eps = recipes.EPS
    for x, y in DataLoader(TensorDataset(host.x, host.y), batch_size=100, shuffle=True):
        x, y = x.to(device), y.to(device)
        if adversarial:
            delta = torch.empty_like(x).uniform_(-eps, eps).requires_grad_()
            gradient = torch.autograd.grad(F.cross_entropy(net(x + delta), y), delta)[0]
            delta = (delta + 1.25 * eps * gradient.sign()).clamp(-eps, eps)
            x = (x + delta).clamp(0, 1).detach()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def _run(name: str, recipe: recipes.Recipe, device: torch.device) -> dict[str, Any]:
    """Train once, on the clock and with nothing else on it, and test."""
    train, test = load_data(device=device)
    net = digit_net(generator=torch.Generator().manual_seed(recipe.seed)).to(device)
    took, _ = timed(lambda: recipe.fit(net, train), device)
    whole = Batches(test.x, test.y, batch_size=500)
    stronger = partial(recipes.BIM, eps=0.2, alpha=0.02)
    found = {
        "recipe": name,
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "train_s": took,
        "clean": accuracy(net, whole),
        "bim": accuracy(net, whole, attack=recipes.BIM),
        "bim_eps_0.2": accuracy(net, whole, attack=stronger),
    }
    print(
        f"{name}, seed {recipe.seed}: {recipe.epochs} epochs in {took:.1f} s, clean "
        f"{found['clean']:.4f}, BIM {found['bim']:.4f}, at eps 0.2 {found['bim_eps_0.2']:.4f}",
        flush=True,
    )
    return found


def _summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over the seeds, and time against the source's recipe on the same seed."""
    found = {}
    for name in recipes_compared():
        ours = [run for run in runs if run["recipe"] == name]
        source = [run for run in runs if run["recipe"] == "source"]
        found[name] = {
            key: mean(run[key] for run in ours) for key in ("clean", "bim", "bim_eps_0.2")
        } | {
            "times_faster": median(
                s["train_s"] / run["train_s"] for s, run in zip(source, ours, strict=True)
            ),
            "seeds_at_least_source": sum(
                run["bim"] >= s["bim"] for s, run in zip(source, ours, strict=True)
            ),
        }
        print(name, {key: round(value, 4) for key, value in found[name].items()})
    return found
