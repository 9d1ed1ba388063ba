"""One attack library in a process of its own, as its users run it: `python -m benchmarks.worker`.

It is asked over its standard input and answers over its standard output. Nothing of advlib is
imported here unless advlib is the library: what advlib does to its process helps no other.
"""

import ctypes
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OURS = "advlib"
Attack = Callable[[Tensor, Tensor], Tensor]


def advlib(model: nn.Module, batch_size: int, eps: float, steps: int) -> Attack:
    """advlib's BIM."""
    from advlib import bim

    return lambda x, y: bim(model, x, y, eps=eps, alpha=eps / 10, steps=steps)


def torchattacks(model: nn.Module, batch_size: int, eps: float, steps: int) -> Attack:
    """torchattacks' BIM."""
    import torchattacks

    return torchattacks.BIM(model, eps=eps, alpha=eps / 10, steps=steps)


def foolbox(model: nn.Module, batch_size: int, eps: float, steps: int) -> Attack:
    """Foolbox's BIM."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=eps / 10, steps=steps, random_start=False
    )
    return lambda x, y: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)


def cleverhans(model: nn.Module, batch_size: int, eps: float, steps: int) -> Attack:
    """CleverHans' PGD without a random start, which is BIM."""
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    return lambda x, y: projected_gradient_descent(
        model,
        x,
        eps,
        eps / 10,
        steps,
        float("inf"),
        clip_min=0.0,
        clip_max=1.0,
        y=y,
        rand_init=False,
        sanity_checks=False,
    ).detach()


def art(model: nn.Module, batch_size: int, eps: float, steps: int) -> Attack:
    """ART's BIM, which takes and returns NumPy arrays; moving them is part of its work."""
    from art.attacks.evasion import BasicIterativeMethod
    from art.estimators.classification import PyTorchClassifier

    device = next(model.parameters()).device
    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (1, 28, 28),
        10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device.type == "cuda" else "cpu",
    )
    attack = BasicIterativeMethod(
        classifier, eps, eps / 10, steps, batch_size=batch_size, verbose=False
    )

    def run(x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(device)

    return run


LIBRARIES = {
    OURS: advlib,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "cleverhans": cleverhans,
    "art": art,
}


class Worker:
    """What the process can be asked for."""

    def start(self, library: str, files: str, device: str) -> None:
        """Load networks and images, and make the library do a little of everything once."""
        self.library = library
        self.device = torch.device(device)
        saved = torch.load(files, weights_only=False, map_location=self.device)
        self.nets, self.x, self.y = saved["nets"], saved["x"], saved["y"]
        for name in self.nets:
            self.run(name, 2, 0.1, 1)
        forget_peak(self.device)
        self.memory_before = memory(self.device)

    def run(self, net: str, batch_size: int, eps: float, steps: int) -> tuple[float, Tensor]:
        """Attack the first `batch_size` images; give the time and the result."""
        attack = LIBRARIES[self.library](self.nets[net], batch_size, eps, steps)
        x, y = self.x[:batch_size], self.y[:batch_size]
        return timed(lambda: attack(x, y), self.device)

    def peak_megabytes(self, net: str, batch_size: int) -> float:
        """Memory that one attack takes at its peak, beyond networks, images and library."""
        forget_peak(self.device)
        self.run(net, batch_size, 0.1, 2)  # more steps take no more
        return (memory(self.device, peak=True) - self.memory_before) / 2**20

    def robust_accuracy(
        self, net: str, batch_size: int, eps: float, steps: int
    ) -> tuple[float, float]:
        """Accuracy of all images under attack, and the time; advlib stops at success."""
        model = self.nets[net]

        def count() -> float:
            if self.library == OURS:
                from functools import partial

                from advlib import Batches, accuracy, bim

                early = partial(bim, eps=eps, alpha=eps / 10, steps=steps, early_exit=True)
                batches = Batches(self.x, self.y, batch_size=batch_size)
                return accuracy(model, batches, attack=early)
            attack = LIBRARIES[self.library](model, batch_size, eps, steps)
            pairs = zip(self.x.split(batch_size), self.y.split(batch_size), strict=True)
            with torch.no_grad():
                hits = []
                for x, y in pairs:
                    with torch.enable_grad():
                        x_adv = attack(x, y)
                    hits.append(model(x_adv).argmax(1) == y)
            return torch.cat(hits).float().mean().item()

        return timed(count, self.device)

    def autoattack(self, net: str, images: int, eps: float) -> tuple[float, float]:
        """Accuracy of the first images under AutoAttack, and the time; 100 images at a time."""
        model, x, y = self.nets[net], self.x[:images], self.y[:images]
        attack: Any
        if self.library == OURS:
            from functools import partial

            from advlib import autoattack

            attack = partial(autoattack, model, eps=eps)
        else:
            from torchattacks import AutoAttack

            attack = AutoAttack(model, norm="Linf", eps=eps, n_classes=10, seed=0)

        def count() -> float:
            parts = zip(x.split(100), y.split(100), strict=True)
            hits = [model(attack(part, labels)).argmax(1) == labels for part, labels in parts]
            return torch.cat(hits).float().mean().item()

        return timed(count, self.device)

    def matrix_product(self, device: str) -> float:
        """Multiplications and additions a second of one large float32 matrix product."""
        place = torch.device(device)
        n = 8192 if place.type == "cuda" else 2048
        a, b, out = (torch.rand(n, n, device=place) for _ in range(3))
        return 2 * n**3 / min(timed(lambda: torch.mm(a, b, out=out), place)[0] for _ in range(5))


def timed(task: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Time that one call of `task` takes, and what it gives."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    found = task()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, found


def forget_peak(device: torch.device) -> None:
    """Let the peak of memory begin anew, with what is free given back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def memory(device: torch.device, *, peak: bool = False) -> int:
    """Bytes this process holds, on a GPU or (on Linux) in main memory; or held at its peak."""
    if device.type == "cuda":
        # reserved, not allocated: what a recorded graph works in counts as free between replays
        count = torch.cuda.max_memory_reserved if peak else torch.cuda.memory_reserved
        return count(device)
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    worker = Worker()
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = getattr(worker, method)(*arguments)
        except Exception as error:  # told to whoever asked, who decides
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
