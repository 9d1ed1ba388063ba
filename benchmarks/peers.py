"""BIM by advlib and by four well-known libraries, on the chapter network, in turns."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from advlib import Batches, accuracy, bim, engine, load_data, recipes
from benchmarks import common

EPS, STEPS = 0.1, 20  # alpha is a tenth of eps
OURS = "advlib"
Attack = Callable[[Tensor, Tensor], Tensor]


def ours(model: nn.Module, batch_size: int, eps: float, steps: int) -> Attack:
    """advlib's BIM."""
    return partial(bim, model, eps=eps, alpha=eps / 10, steps=steps)


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
    """ART's BIM, which takes and returns NumPy arrays; putting those on the device is its part."""
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


PEERS = {
    OURS: ours,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "cleverhans": cleverhans,
    "art": art,
}


def main(device: torch.device, rounds: int, batch_sizes: list[int], layout: str) -> None:
    """Measure, print and save. `layout` is how the peers' weights lie in memory."""
    _, test = load_data(device=device)
    nets = {
        name: make(device=str(device)).eval()
        for name, make in (("standard", recipes.standard_net), ("robust", recipes.robust_net))
    }
    for net in nets.values():
        if layout == "default":
            net.to(memory_format=torch.contiguous_format)
    available = _available(nets["standard"])
    rows: list[dict[str, Any]] = []
    ratios = {}
    yardstick = "matrix product"
    for size in batch_sizes:
        x, y = test.x[:size], test.y[:size]
        attacks = {name: PEERS[name](nets["standard"], size, EPS, STEPS) for name in available}
        found = {name: attack(x, y) for name, attack in attacks.items()}
        checked = _check_same(nets["standard"], x, y, found)
        tasks: common.Tasks = {name: partial(attack, x, y) for name, attack in attacks.items()}
        tasks[yardstick] = common.matmul(device)
        times = common.in_turns(tasks, rounds, device, warm_up=False)  # they ran for the check
        peak = 2 * common.matmul_size(device) ** 3 / median(times[yardstick])
        for name in available:
            took = median(times[name])
            flop = common.forward_and_back_flop(nets["standard"], 28) * STEPS * size
            rows.append(
                {
                    "peer": name,
                    "batch_size": size,
                    "median_s": took,
                    "images_per_s": size / took,
                    "robust_accuracy": checked[name][0],
                    "linf": checked[name][1],
                    "peak_mb": common.peak_megabytes(_one_call, name, size, str(device), layout),
                    "slower_than_advlib": common.ratio(times, name, OURS),
                    "fraction_of_matmul_peak": flop / took / peak,
                }
            )
        others = [name for name in available if name != OURS]
        fastest = min(others, key=lambda name: median(times[name]))
        ratios[str(size)] = {"fastest": fastest, "ratio": common.ratio(times, fastest, OURS)}
        _print(rows[-len(available) :], peak, device, ratios[str(size)])
    best = max((r for r in rows if r["peer"] != OURS), key=lambda r: r["images_per_s"])
    only = [
        _accuracy_only(nets[kind], kind, test, best, eps, device, rounds)
        for kind, eps in (("standard", EPS), ("robust", EPS), ("standard", 2 * EPS))
    ]
    common.save(
        "peers" if layout == "ours" else f"peers-{layout}-layout",
        device,
        {"rounds": rounds, "rows": rows, "fastest": ratios, "accuracy_only": only},
    )


def _available(net: nn.Module) -> list[str]:
    """Names of the libraries that work here; the others are reported."""
    working = []
    for name, make in PEERS.items():
        try:
            make(net, 1, EPS, STEPS)
            working.append(name)
        except Exception as error:  # whatever a foreign import may raise: it is the report
            print(f"not measured: {name} ({type(error).__name__}: {error})")
    if len(working) < 2:
        raise SystemExit("no other library works here; make bench installs them")
    return working


def _check_same(
    net: nn.Module, x: Tensor, y: Tensor, found: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """Robust accuracy and largest change of each result, once they are known to agree."""
    checked = {}
    for name, x_adv in found.items():
        right = (engine.logits(net, x_adv).argmax(1) == y).float().mean().item()
        checked[name] = right, (x_adv - x).abs().max().item()
    ours_right, ours_linf = checked[OURS]
    same = max(0.005, 1.5 / len(x))  # half a point, but never less than one image
    for name, (right, linf) in checked.items():
        if abs(right - ours_right) > same or abs(linf - ours_linf) > 1e-5:
            raise SystemExit(f"{name} did something else: {checked}")
    return checked


def _one_call(name: str, size: int, device: str, layout: str) -> tuple[torch.device, Any]:
    """For `peak_megabytes`: everything but the call itself."""
    place = torch.device(device)
    _, test = load_data(device=place)
    net = recipes.standard_net(device=device).eval()
    if layout == "default":
        net.to(memory_format=torch.contiguous_format)
    attack = PEERS[name](net, size, EPS, steps=2)  # more steps take no more memory
    x, y = test.x[:size], test.y[:size]
    attack(x[:2], y[:2])  # what is allocated once
    return place, partial(attack, x, y)


def _accuracy_only(
    net: nn.Module,
    kind: str,
    test: Any,
    best: dict[str, Any],
    eps: float,
    device: torch.device,
    rounds: int,
) -> dict[str, Any]:
    """Robust accuracy of the test set: the fastest peer at its best batch size, and ours."""
    peer, batch_size = best["peer"], best["batch_size"]
    attack = PEERS[peer](net, batch_size, eps, STEPS)
    batches = Batches(test.x, test.y, batch_size=batch_size)
    whole = Batches(test.x, test.y, batch_size=1000)
    early = partial(bim, eps=eps, alpha=eps / 10, steps=STEPS, early_exit=True)
    answers: dict[str, float] = {}

    def theirs() -> None:
        right = sum(int((net(attack(x, y)).argmax(1) == y).sum()) for x, y in batches)
        answers[peer] = right / len(test.x)

    def with_early_exit() -> None:
        answers[OURS] = accuracy(net, whole, attack=early)

    times = common.in_turns({OURS: with_early_exit, peer: theirs}, rounds, device)
    found = {
        "network": kind,
        "eps": eps,
        "peer": peer,
        "batch_size": batch_size,
        "ratio": common.ratio(times, peer, OURS),
        "median_s": median(times[OURS]),
        "peer_median_s": median(times[peer]),
        "robust_accuracy": answers[OURS],
        "peer_robust_accuracy": answers[peer],
    }
    print(
        f"accuracy only, {kind} network, eps {eps}: {peer} (batch {batch_size}) "
        f"{found['peer_median_s']:.1f} s for {answers[peer]:.4f}, advlib "
        f"{found['median_s']:.1f} s for {answers[OURS]:.4f}: {found['ratio']:.2f} times"
    )
    return found


def _print(
    rows: list[dict[str, Any]], peak: float, device: torch.device, fastest: dict[str, Any]
) -> None:
    print(f"\nbatch {rows[0]['batch_size']}, {common.device_name(device)}, ", end="")
    print(f"matrix product {peak / 1e9:.0f} GFLOP/s")
    common.table(
        ["", "s", "images/s", "times advlib's", "of peak", "robust acc.", "linf", "peak MB"],
        [
            [
                row["peer"],
                f"{row['median_s']:.3f}",
                f"{row['images_per_s']:.0f}",
                f"{row['slower_than_advlib']:.2f}",
                f"{row['fraction_of_matmul_peak']:.2f}",
                f"{row['robust_accuracy']:.4f}",
                f"{row['linf']:.4f}",
                f"{row['peak_mb']:.0f}",
            ]
            for row in rows
        ],
    )
    print(f"advlib against the fastest, {fastest['fastest']}: {fastest['ratio']:.2f}", flush=True)


def speed_table(found: dict[str, Any]) -> str:
    """Write results as README's table: speed and memory against the fastest other library."""
    lines = [
        "| batch | fastest of the others | advlib's speed over it | peak memory, MB | advlib's |",
        "|---|---|---|---|---|",
    ]
    for size, fastest in found["fastest"].items():
        rows = {row["peer"]: row for row in found["rows"] if str(row["batch_size"]) == size}
        memory = [rows[name]["peak_mb"] for name in (fastest["fastest"], OURS)]
        cells = [f"{int(size):,}", fastest["fastest"], f"{fastest['ratio']:.2f}"]
        lines.append("| " + " | ".join([*cells, *(f"{mb:,.0f}" for mb in memory)]) + " |")
    return "\n".join(lines) + "\n"
