"""DDN and FMN by advlib, adv_lib and foolbox, with the same settings, in turns."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import advlib
from advlib.attacks.minimum import ORDER
from benchmarks import common

Attack = Callable[[Tensor, Tensor], Tensor]
CASES = [("ddn", "l2"), *(("fmn", norm) for norm in ORDER)]


def attacks(name: str, norm: str, model: nn.Module, steps: int) -> dict[str, Attack]:
    """The same attack by each library, from images and labels to attacked images."""
    import adv_lib.attacks as adv
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    kinds = {"l0": "L0FMNAttack", "l2": "L2FMNAttack", "linf": "LInfFMNAttack"}
    kind = "DDNAttack" if name == "ddn" else kinds[norm]
    from_foolbox = getattr(foolbox.attacks, kind)(steps=steps)

    def by_foolbox(x: Tensor, y: Tensor) -> Tensor:
        goal = foolbox.criteria.Misclassification(y)
        return from_foolbox(wrapped, x, goal, epsilons=None)[1]

    if name == "ddn":
        ours, by_adv = advlib.ddn, partial(adv.ddn, model, levels=None)
    else:
        ours, by_adv = partial(advlib.fmn, norm=norm), partial(adv.fmn, model, norm=ORDER[norm])
    return {
        "advlib": partial(ours, model, steps=steps),
        "adv_lib": partial(by_adv, steps=steps),
        "foolbox": by_foolbox,
    }


def compare(
    kind: str, name: str, norm: str, *, images: int, steps: int, rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row per library: how many images it broke, the median size, and seconds."""
    net, test = common.trained_network(kind, pool_first=True).to(device), advlib.load_data()[1]
    x, y = test.x[:images].to(device), test.y[:images].to(device)
    found: dict[str, Tensor] = {}
    tasks: common.Tasks = {}
    for library, attack in attacks(name, norm, net, steps).items():

        def run(library: str = library, attack: Attack = attack) -> None:
            found[library] = attack(x, y)

        tasks[library] = run
    times = common.in_turns(common.clocks(tasks, device), rounds, warm_up=False)
    rows = []
    for library, x_adv in found.items():
        broken = advlib.predict(net, x_adv) != y
        sizes = (x_adv - x).flatten(1).norm(ORDER[norm], dim=1)
        row: dict[str, Any] = {"network": kind, "attack": f"{name}, {norm}", "library": library}
        row |= {"broken": int(broken.sum()), "images": images}
        row |= {"median size": float(sizes.where(broken, torch.inf).median())}
        row |= {"median_s": median(times[library])}
        rows.append(row | {"times_advlib": common.ratio(times, library, "advlib")})
    return rows


def main(device: torch.device, rounds: int, images: int, steps: int) -> None:
    """Compare on both networks, print and save."""
    rows: list[dict[str, Any]] = []
    given: dict[str, Any] = {"images": images, "steps": steps, "rounds": rounds}
    for kind in ("standard", "robust"):
        for name, norm in CASES:
            rows += compare(kind, name, norm, **given, device=device)
            common.table(list(rows[0]), [list(row.values()) for row in rows[-3:]])
    common.save("minimum", device, {"rounds": rounds, "steps": steps, "rows": rows})
