"""`python -m benchmarks peers`, `autoattack`, `training` and so on, into benchmarks/results."""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

from advlib import pick_device
from benchmarks import build, common, costs, distributed, peers, scaling, training


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", help="cpu or cuda; the best one present by default")
    parser.add_argument(
        "--rounds", type=int, default=common.ROUNDS, help="how often each thing is timed"
    )
    what = parser.add_subparsers(dest="what", required=True)
    against = what.add_parser("peers", help="BIM against four other libraries (make bench)")
    against.add_argument("--batch-sizes", type=int, nargs="*", default=[100, 500, 5000])
    against.add_argument(
        "--layout",
        choices=list(peers.LAYOUTS),
        default="default",
        help="how the network's weights lie when the libraries get it: as torch makes them, or "
        "as digit_net does",
    )
    against.add_argument(
        "--accuracy-rounds",
        type=int,
        default=3,
        help="rounds of the robust accuracy of the whole test set, which takes minutes; 0 for none",
    )
    epochs = what.add_parser("training", help="cost of an epoch, and of robustness")
    epochs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    strong = what.add_parser("autoattack", help="AutoAttack against torchattacks'")
    strong.add_argument("--images", type=int, default=200)
    strong.add_argument("--repeats", type=int, default=3)
    what.add_parser("scaling", help="time and memory as the work grows")
    what.add_parser("costs", help="operations, memory and communication of training")
    what.add_parser("distributed", help="what two processes make of one machine")
    what.add_parser("build", help="the book and its tests, cold (on the CPU, up to two hours)")
    what.add_parser("install", help="install the libraries to compare with, one by one")
    options = parser.parse_args()
    if options.what == "install":
        install()
        return
    if options.what == "build":
        build.main()
        return
    device = pick_device(options.device)
    if options.what == "peers":
        peers.main(
            device, options.rounds, options.batch_sizes, options.layout, options.accuracy_rounds
        )
    elif options.what == "training":
        training.main(device, options.rounds, options.seeds)
    elif options.what == "autoattack":
        peers.autoattack(device, options.images, options.repeats)
    elif options.what == "scaling":
        scaling.main(device, options.rounds)
    elif options.what == "costs":
        costs.main(device, options.rounds)
    else:
        distributed.main(device, options.rounds)


def install() -> None:
    """Install each peer that pyproject.toml names; one that fails is reported and left out."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    for peer in project["project"]["optional-dependencies"]["bench"]:
        command = [sys.executable, "-m", "pip", "install", "--quiet", peer]
        if subprocess.run(command).returncode:
            print(f"not installed: {peer}")


if __name__ == "__main__":
    main()
