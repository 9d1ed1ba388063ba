"""Points to check the cost model of adversarial training against (book/scale.md)."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.spawn import spawn
from torch.utils.flop_counter import FlopCounterMode

from advlib import Batches, bim, digit_net, engine, fit
from advlib.models import preact_resnet18
from benchmarks import common
from benchmarks.worker import Worker

STEPS = [0, 1, 2, 5, 10]  # gradients of the attack; none is standard training
NUMBERS = [1_000, 10_000, 100_000, 1_000_000, 4_000_000, 10_000_000]  # in one sum over processes
PROCESSES = 2


class Subject(NamedTuple):
    """A network, and what of it is measured on a device of each type.

    Attributes:
        make: builds the network.
        image: the shape of one image.
        images: how many are trained on to take the time, and in batches of how many.
        memory: batch sizes whose memory is measured.
    """

    make: Callable[[], nn.Module]
    image: tuple[int, int, int]
    images: dict[str, tuple[int, int]]
    memory: dict[str, list[int]]


SUBJECTS = {
    "digit_net": Subject(
        digit_net,
        (1, 28, 28),
        {"cpu": (1000, 100), "cuda": (10_000, 1000)},
        {"cpu": [100, 1000], "cuda": [1000, 10_000]},
    ),
    "preact_resnet18": Subject(
        preact_resnet18,
        (3, 32, 32),
        {"cpu": (64, 32), "cuda": (2048, 256)},
        {"cpu": [16, 64, 128], "cuda": [128, 512, 1024]},
    ),
}


def main(device: torch.device, rounds: int) -> None:
    """Measure, print and save."""
    from torchvision.models import resnet50  # slow to import

    networks = {name: count(subject.make(), subject.image) for name, subject in SUBJECTS.items()}
    networks["resnet50"] = count(resnet50(), (3, 224, 224))
    print(f"operations and bytes of one image, {common.device_name(device)}")
    common.table(
        ["", *networks["digit_net"]],
        [[name, *(f"{value:,}" for value in found.values())] for name, found in networks.items()],
    )
    content = {
        "matmul_flop_per_s": Worker().matrix_product(str(device)),
        "networks": networks,
        "training": _training(device, rounds, networks),
        "memory": _memory(device, networks),
        "all_reduce": all_reduce(device, rounds),
    }
    common.save("costs", device, {"rounds": rounds, **content})


def count(net: nn.Module, image: tuple[int, ...]) -> dict[str, int]:
    """What an image of this shape costs: operations of its passes, bytes kept for the way back.

    Operations are multiplications and additions; bytes are those of all tensors that autograd
    keeps from the way forward to the way back, besides weights and images.
    """
    n = 2  # a batch norm may need two
    x = torch.zeros(n, *image)
    parameters = list(net.parameters())
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as forward, saved_tensors_hooks(keep, lambda kept: kept):
        loss = net(x).sum()
    for tensor in (x, *parameters, *net.buffers()):
        kept.pop(tensor.untyped_storage()._cdata, None)
    with FlopCounterMode(display=False) as to_weights:
        loss.backward()
    pixels = x.clone().requires_grad_()
    net.requires_grad_(False)
    with FlopCounterMode(display=False) as attack:
        net(pixels).sum().backward()
    net.requires_grad_(True)
    return {
        "forward_flop": forward.get_total_flops() // n,
        "training_flop": (forward.get_total_flops() + to_weights.get_total_flops()) // n,
        "attack_flop": attack.get_total_flops() // n,
        "activation_bytes": sum(t.untyped_storage().nbytes() for t in kept.values()) // n,
        "parameters": sum(parameter.numel() for parameter in parameters),
    }


def batches(name: str, device: torch.device, images: int, batch_size: int) -> Batches:
    """Noise to train on: what is in the images does not matter for the time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(images, *SUBJECTS[name].image, generator=generator)
    y = torch.randint(10, (images,), generator=generator)
    return Batches(x.to(device), y.to(device), batch_size=batch_size)


def train(net: nn.Module, data: Batches, steps: int) -> None:
    """One epoch, on images attacked with so many gradients."""
    attack = partial(bim, eps=8 / 255, alpha=2 / 255, steps=steps) if steps else None
    fit(net, data, epochs=1, lr=0.01, attack=attack)


def _training(
    device: torch.device, rounds: int, networks: dict[str, dict[str, int]]
) -> list[dict[str, Any]]:
    """Time of training, by the gradients of the attack."""
    tasks: common.Tasks = {}
    for name, subject in SUBJECTS.items():
        net = subject.make().to(device)
        data = batches(name, device, *subject.images[device.type])
        for steps in STEPS:
            tasks[f"{name} {steps}"] = partial(train, net, data, steps)
    times = common.in_turns(tasks, rounds, device)
    rows: list[dict[str, Any]] = []
    for name, subject in SUBJECTS.items():
        images, batch_size = subject.images[device.type]
        for steps in STEPS:
            per_image = median(times[f"{name} {steps}"]) / images
            flop = networks[name]["training_flop"] + steps * networks[name]["attack_flop"]
            rows.append(
                {
                    "network": name,
                    "batch_size": batch_size,
                    "steps": steps,
                    "us_per_image": 1e6 * per_image,
                    "flop_per_s": flop / per_image,
                    "ratio": common.ratio(times, f"{name} {steps}", f"{name} 0"),
                    "ratio_of_flop": flop / networks[name]["training_flop"],
                }
            )
    print("\ntraining, by the steps of the attack")
    common.table(
        ["", "steps", "us per image", "GFLOP/s", "ratio", "of FLOP"],
        [
            [
                row["network"],
                row["steps"],
                f"{row['us_per_image']:.0f}",
                f"{row['flop_per_s'] / 1e9:.0f}",
                f"{row['ratio']:.2f}",
                f"{row['ratio_of_flop']:.2f}",
            ]
            for row in rows
        ],
    )
    return rows


def _memory(device: torch.device, networks: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Peak memory of training for two iterations, which includes the network."""
    settings: list[dict[str, Any]] = [
        {"name": name, "batch_size": batch_size, "steps": steps, "on": on}
        for name, subject in SUBJECTS.items()
        for batch_size in subject.memory[device.type]
        for steps, on in ((0, True), (0, False) if name == "digit_net" else (2, True))
    ]
    rows = []
    for s in settings:
        counted = networks[s["name"]]
        held = 3 * 4 * counted["parameters"] + s["batch_size"] * counted["activation_bytes"]
        rows.append(
            {
                "network": s["name"],
                "batch_size": s["batch_size"],
                "steps": s["steps"],
                "engine": s["on"],
                "predicted_mb": held / 2**20,
                "peak_mb": common.peak_megabytes(_for_memory, str(device), s),
            }
        )
    print("\nmemory of training")
    common.table(
        ["", "batch", "steps", "engine", "predicted MB", "peak MB"],
        [
            [
                row["network"],
                row["batch_size"],
                row["steps"],
                "on" if row["engine"] else "off",
                f"{row['predicted_mb']:.0f}",
                f"{row['peak_mb']:.0f}",
            ]
            for row in rows
        ],
    )
    return rows


def _for_memory(device: str, settings: dict[str, Any]) -> tuple[torch.device, Any]:
    place, name = torch.device(device), settings["name"]
    data = batches(name, place, 2 * settings["batch_size"], settings["batch_size"])
    few = batches(name, place, 4, 2)

    def task(data: Batches) -> None:
        with nullcontext() if settings["on"] else engine.off():
            train(SUBJECTS[name].make().to(place), data, settings["steps"])

    task(few)  # what is allocated once
    return place, partial(task, data)


def all_reduce(device: torch.device, rounds: int) -> dict[str, Any]:
    """Time in which processes on this machine sum up their gradients."""
    enough = device.type == "cuda" and torch.cuda.device_count() >= PROCESSES
    backend = "nccl" if enough else "gloo"
    with TemporaryDirectory() as folder:
        spawn(_process, (backend, rounds, folder), nprocs=PROCESSES)
        times = json.loads(Path(folder, "times").read_text())
    rows = [{"numbers": n, "median_s": median(times[str(n)])} for n in NUMBERS]
    print(f"\nall-reduce among {PROCESSES} processes, {backend}")
    common.table(
        ["numbers", "ms"], [[f"{r['numbers']:,}", f"{1e3 * r['median_s']:.2f}"] for r in rows]
    )
    return {"processes": PROCESSES, "backend": backend, "rows": rows}


def _process(rank: int, backend: str, rounds: int, folder: str) -> None:
    """One of the processes; the first writes down what it measured."""
    place = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    torch.set_num_threads(max(1, torch.get_num_threads() // PROCESSES))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group(
        backend, init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES
    )
    tasks: common.Tasks = {
        str(n): partial(dist.all_reduce, torch.zeros(n, device=place)) for n in NUMBERS
    }
    times = common.in_turns(tasks, 3 * rounds, place)  # they are short
    if rank == 0:
        Path(folder, "times").write_text(json.dumps(times))
    dist.destroy_process_group()
