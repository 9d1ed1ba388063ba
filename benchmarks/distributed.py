"""How well two processes share the work of one: FGSM training, half the cores each."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch

from advlib import distributed, load_data, recipes
from benchmarks import common

EPOCHS = 4  # the first is not timed
RECIPE = replace(recipes.ROBUST, images=2000, epochs=EPOCHS)


def main(device: torch.device, rounds: int) -> None:
    """Measure, print and save."""
    units = torch.cuda.device_count() if device.type == "cuda" else torch.get_num_threads()
    counts = [1, 2] if device.type == "cpu" else sorted({1, units})
    times: dict[int, list[float]] = {count: [] for count in counts}
    for i in range(rounds):
        for count in counts if i % 2 else reversed(counts):
            times[count] += _epochs(device, count, units)
    seconds = {count: median(found) for count, found in times.items()}
    pairs = zip(times[counts[0]], times[counts[-1]], strict=True)
    # on a CPU both have all the cores; more GPUs should take as much less time
    gain = 1 if device.type == "cpu" else counts[-1]
    efficiency = median(one / many for one, many in pairs) / gain
    common.table(["processes", "s an epoch"], [[n, f"{s:.3f}"] for n, s in seconds.items()])
    print(f"efficiency: {efficiency:.2f}")
    found = {"processes": counts, "median_s": list(seconds.values()), "efficiency": efficiency}
    settings = {"rounds": rounds, "images": RECIPE.images, "batch_size": RECIPE.batch_size}
    common.save("distributed", device, settings | found)


def _epochs(device: torch.device, count: int, units: int) -> list[float]:
    """Seconds of each timed epoch by so many processes that share the machine."""
    threads = str(max(1, units // count)) if device.type == "cpu" else "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", "-m", "benchmarks.distributed", device.type]
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    done = subprocess.run(
        command, env=environment, cwd=common.ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _work(device: str) -> None:
    """What each process does; the first one prints how long the epochs took."""
    with distributed.joined(device) as place:
        train, _ = load_data(device=place)
        ends = []

        def note(model: torch.nn.Module) -> dict[str, float]:
            distributed.summed(torch.zeros(1, device=place)).item()  # all have come this far
            ends.append(time.perf_counter())
            return {}

        RECIPE.fit(RECIPE.net().to(place), train, evaluate=note)
        if distributed.rank() == 0:
            print(json.dumps([b - a for a, b in pairwise(ends)]))


if __name__ == "__main__":
    _work(sys.argv[1])
