"""One attack library in a process of its own, as its users run it: `python -m benchmarks.worker`.

It is asked over its standard input and answers over its standard output. Nothing of advlib is
imported here unless advlib is the library: what advlib does to its process helps no other.
"""

import importlib
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import code_lines, timed

OURS = "advlib"
PACKAGES = {"art": "adversarial-robustness-toolbox"}  # on the index, if called otherwise there
MODULES = {"secml-torch": "secmlt"}
ALPHA = 0.1  # of eps
Attack = Callable[[Tensor, Tensor], Tensor]


def advlib(model: nn.Module, eps: float, steps: int) -> Attack:
    """bim."""
    from advlib import bim

    return partial(bim, model, eps=eps, alpha=ALPHA * eps, steps=steps)


def torchattacks(model: nn.Module, eps: float, steps: int) -> Attack:
    """BIM."""
    import torchattacks

    return torchattacks.BIM(model, eps=eps, alpha=ALPHA * eps, steps=steps)


def foolbox(model: nn.Module, eps: float, steps: int) -> Attack:
    """LinfBasicIterativeAttack."""
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=ALPHA * eps, steps=steps, random_start=False
    )
    return lambda x, y: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)


def cleverhans(model: nn.Module, eps: float, steps: int) -> Attack:
    """projected_gradient_descent without a random start."""
    from cleverhans.torch.attacks import projected_gradient_descent as pgd

    ball: dict[str, Any] = {"norm": float("inf"), "clip_min": 0.0, "clip_max": 1.0}
    ball |= {"eps": eps, "eps_iter": ALPHA * eps, "nb_iter": steps}
    attack = partial(pgd.projected_gradient_descent, model, **ball, rand_init=False)
    return lambda x, y: attack(x, y=y, sanity_checks=False).detach()


def art(model: nn.Module, eps: float, steps: int) -> Attack:
    """BasicIterativeMethod, from and to NumPy arrays."""
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

    def run(x: Tensor, y: Tensor) -> Tensor:
        attack = BasicIterativeMethod(
            classifier, eps, ALPHA * eps, steps, batch_size=len(x), verbose=False
        )
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(device)

    return run


def adv_lib(model: nn.Module, eps: float, steps: int) -> Attack:
    """pgd_linf without a random start; an image that no step breaks comes back as it was."""
    from adv_lib.attacks import pgd_linf

    step = {"steps": steps, "absolute_step_size": ALPHA * eps, "random_init": False}
    return lambda x, y: pgd_linf(model, x, y, eps, **step)


def secml_torch(model: nn.Module, eps: float, steps: int) -> Attack:
    """PGD, native, without a random start; gives each image's step of largest loss."""
    from secmlt.adv.evasion.pgd import PGD

    ball = {"perturbation_model": "linf", "epsilon": eps, "random_start": False}
    attack = PGD(**ball, num_steps=steps, step_size=ALPHA * eps, backend="native")
    return lambda x, y: next(attack(model, [(x, y)], stream=True))[0].detach()


LIBRARIES: dict[str, Callable[[nn.Module, float, int], Attack]] = {
    OURS: advlib,
    "adv_lib": adv_lib,
    "art": art,
    "cleverhans": cleverhans,
    "foolbox": foolbox,
    "secml-torch": secml_torch,
    "torchattacks": torchattacks,
}


class Worker:
    """What the process can be asked for."""

    def start(self, library: str, files: str, device: str) -> None:
        """Load networks and images, and make the library do a little of everything once."""
        self.library, self.device = library, torch.device(device)
        saved = torch.load(files, weights_only=False, map_location=self.device)
        self.nets, self.x, self.y = saved["nets"], saved["x"], saved["y"]
        for name in self.nets:
            self.run(name, 2, 0.1, 1)

    def attack(self, net: str, eps: float, steps: int) -> Attack:
        """Return the library's BIM on a network."""
        return LIBRARIES[self.library](self.nets[net], eps, steps)

    def run(self, net: str, images: int, eps: float, steps: int) -> float:
        """Time of an attack on the first images, in one batch."""
        attack, x, y = self.attack(net, eps, steps), self.x[:images], self.y[:images]
        return timed(lambda: attack(x, y), self.device)[0]

    def check(self, net: str, images: int, eps: float, steps: int) -> dict[str, float]:
        """What that attack achieves, once it is known to stay inside ball and box.

        `forward` is how often it sends an image through the network.
        """
        model, x, y = self.nets[net], self.x[:images], self.y[:images]
        sent: list[int] = []
        handle = model[0].register_forward_hook(lambda _, given, out: sent.append(len(out)))
        x_adv = self.attack(net, eps, steps)(x, y)
        handle.remove()
        linf = (x_adv - x).abs().max().item()
        assert x_adv.shape == x.shape, x_adv.shape
        assert linf <= eps + 1e-6, f"outside the ball: {linf}"
        assert torch.equal(x_adv, x_adv.clamp(0, 1)), "outside the box"
        right = accuracy_under(lambda x, y: x, model, x_adv, y, 100)
        return {"robust_accuracy": right, "linf": linf, "forward": sum(sent) / images}

    def about(self) -> dict[str, Any]:
        """The library's version, which attack it is, and its lines: in all, and those of the files
        that an attack runs through.
        """
        module = importlib.import_module(MODULES.get(self.library, self.library))
        folder = Path(str(module.__file__)).parent
        seen: set[str] = set()

        def note(frame: FrameType, event: str, argument: object) -> None:
            seen.add(frame.f_code.co_filename)

        attack = self.attack("standard", 0.1, 2)
        sys.setprofile(note)
        attack(self.x[:2], self.y[:2])
        sys.setprofile(None)
        used = [path for path in map(Path, seen) if folder in path.parents]
        every = [
            path
            for path in folder.rglob("*.py")
            if not {"book", "tests"} & {*path.relative_to(folder).parts}
        ]
        return {
            "version": version(PACKAGES.get(self.library, self.library)),
            "attack": str(LIBRARIES[self.library].__doc__).removesuffix("."),
            "lines": sum(map(code_lines, every)),
            "attack_files": len(used),
            "attack_lines": sum(map(code_lines, used)),
        }

    def robust_accuracy(
        self, net: str, images: int, batch_size: int, eps: float, steps: int
    ) -> tuple[float, float]:
        """Time and accuracy of the first images under attack; advlib's stops at success."""
        model, attack = self.nets[net], self.attack(net, eps, steps)
        x, y = self.x[:images], self.y[:images]
        if self.library == OURS:
            from advlib import Batches, accuracy, bim

            early = partial(bim, eps=eps, alpha=ALPHA * eps, steps=steps, early_exit=True)
            batches = Batches(x, y, batch_size=batch_size)
            return timed(partial(accuracy, model, batches, attack=early), self.device)
        return timed(lambda: accuracy_under(attack, model, x, y, batch_size), self.device)

    def autoattack(self, net: str, images: int, eps: float) -> tuple[float, float]:
        """Time and accuracy of the first images under AutoAttack; 100 images at a time."""
        model, x, y = self.nets[net], self.x[:images], self.y[:images]
        attack: Attack
        if self.library == OURS:
            from advlib import autoattack

            attack = partial(autoattack, model, eps=eps)
        else:
            from torchattacks import AutoAttack

            attack = AutoAttack(model, norm="Linf", eps=eps, n_classes=10, seed=0)
        return timed(lambda: accuracy_under(attack, model, x, y, 100), self.device)


def accuracy_under(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, batch_size: int
) -> float:
    """Accuracy under attack, batch by batch."""
    with torch.no_grad():
        hits = []
        for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            with torch.enable_grad():
                x_adv = attack(part, labels)
            hits.append(model(x_adv).argmax(1) == labels)
    return torch.cat(hits).float().mean().item()


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
