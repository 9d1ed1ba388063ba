"""What adversarial training costs, and how soon it gets where the source's recipe ends."""

from dataclasses import replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch

from advlib import Batches, accuracy, digit_net, fit, load_data
from advlib.book import recipes
from benchmarks import common


def main(device: torch.device, seeds: list[int]) -> None:
    """Measure, print and save."""
    runs = [
        _run(name, replace(recipe, seed=seed), device)
        for seed in seeds
        for name, recipe in recipes_compared().items()
    ]
    common.save("training", device, {"runs": runs, "summary": _summary(runs)})


def recipes_compared() -> dict[str, recipes.Recipe]:
    """The source's recipe, and ours: one as good in less time, one better in half of it."""
    return {"source": recipes.ROBUST, "fast": recipes.FAST, "long": recipes.FAST_LONG}


def epoch(recipe: recipes.Recipe, device: torch.device) -> None:
    """One epoch by a recipe, of a new network."""
    train, _ = load_data(device=device)
    generator = torch.Generator().manual_seed(0)
    net = digit_net(generator=generator).to(device)
    batches = Batches(train.x, train.y, shuffle=True, generator=generator)
    fit(net, batches, epochs=1, lr=recipe.lr, attack=recipe.attack(generator))


def _run(name: str, recipe: recipes.Recipe, device: torch.device) -> dict[str, Any]:
    """Train once, on the clock and with nothing else on it, and test."""
    train, test = load_data(device=device)
    net = digit_net(generator=torch.Generator().manual_seed(recipe.seed)).to(device)
    took, _ = common.timed(lambda: recipe.fit(net, train), device)
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
    print(found, flush=True)
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
        }
    print(found)
    return found
