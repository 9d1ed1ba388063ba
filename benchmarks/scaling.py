"""How time and peak memory of BIM grow with the images, the batch and the steps."""

from functools import partial
from statistics import median
from typing import Any

import torch

from advlib import Batches, accuracy, bim, load_data, trained
from benchmarks import common

BASE = {"images": 500, "batch_size": 100, "steps": 5}
SERIES: dict[str, list[int]] = {
    "images": [100, 500, 1000, 2500, 5000],
    "batch_size": [25, 100, 500, 2500, 5000],
    "steps": [1, 5, 10, 20, 40],
}


def main(device: torch.device, rounds: int) -> None:
    """Measure, print and save."""
    rows = []
    for varied, values in SERIES.items():
        settings = [BASE | {varied: value} for value in values]
        if varied == "batch_size":  # a batch can't be larger than what there is
            settings = [s | {"images": max(s["images"], s["batch_size"])} for s in settings]
        tasks = {str(i): task(str(device), **s)[1] for i, s in enumerate(settings)}
        times = common.in_turns(tasks, rounds, device)
        for i, s in enumerate(settings):
            took = median(times[str(i)])
            gradients = s["images"] * s["steps"]
            rows.append(
                {
                    "varied": varied,
                    **s,
                    "median_s": took,
                    "us_per_gradient": 1e6 * took / gradients,
                    "peak_mb": common.peak_megabytes(_for_memory, str(device), s),
                }
            )
        print(f"\nwith {varied}, {common.device_name(device)}")
        common.table(
            ["images", "batch", "steps", "s", "us per gradient", "peak MB"],
            [
                [
                    r["images"],
                    r["batch_size"],
                    r["steps"],
                    f"{r['median_s']:.3f}",
                    f"{r['us_per_gradient']:.0f}",
                    f"{r['peak_mb']:.0f}",
                ]
                for r in rows[-len(settings) :]
            ],
        )
    common.save("scaling", device, {"rounds": rounds, "rows": rows})


def task(device: str, *, images: int, batch_size: int, steps: int) -> tuple[torch.device, Any]:
    """Accuracy of so many test images under BIM of so many steps."""
    place = torch.device(device)
    _, test = load_data(device=place)
    net = trained.network("standard", device=device)
    batches = Batches(test.x[:images], test.y[:images], batch_size=batch_size)
    attack = partial(bim, eps=0.1, alpha=0.01, steps=steps)
    return place, partial(accuracy, net, batches, attack=attack)


def _for_memory(device: str, settings: dict[str, int]) -> tuple[torch.device, Any]:
    place, measured = task(device, **settings)
    task(device, images=2, batch_size=2, steps=1)[1]()  # what is allocated once
    return place, measured
