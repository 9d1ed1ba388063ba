"""`python -m benchmarks peers`, `autoattack`, `parts` and so on, into benchmarks/results."""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

from advlib import pick_device
from benchmarks import build, common, minimum, parts, peers, training


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", help="cpu or cuda; the best one present by default")
    parser.add_argument(
        "--rounds", type=int, default=common.ROUNDS, help="how often each thing is timed"
    )
    what = parser.add_subparsers(dest="what", required=True)
    against = what.add_parser("peers", help="BIM against six other libraries (make bench)")
    against.add_argument("--batch-sizes", type=int, nargs="+", default=[100, 500, 5000])
    against.add_argument("--images", type=int, default=1000, help="whose accuracy is taken")
    against.add_argument(
        "--layout",
        choices=list(peers.LAYOUTS),
        default="default",
        help="how the network's weights lie: as torch makes them, or channels last",
    )
    strong = what.add_parser("autoattack", help="AutoAttack against torchattacks'")
    strong.add_argument("--images", type=int, default=30)
    least = what.add_parser("minimum", help="DDN and FMN against adv_lib's and foolbox's")
    least.add_argument("--images", type=int, default=200)
    least.add_argument("--steps", type=int, default=100)
    part = what.add_parser("parts", help="what each part of the speed is worth")
    part.add_argument("--images", type=int, default=500)
    part.add_argument("--steps", type=int, nargs="*", default=[100, 1000], help="of long attacks")
    epochs = what.add_parser("training", help="what robustness costs, by recipe")
    epochs.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    what.add_parser("build", help="the book and its tests, cold (on the CPU, up to two hours)")
    what.add_parser("install", help="install the libraries to compare with, one by one")
    options = parser.parse_args()
    if options.what == "install":
        return install()
    if options.what == "build":
        return build.main()
    device, rounds = pick_device(options.device), options.rounds
    if options.what == "peers":
        peers.main(device, rounds, options.batch_sizes, options.layout, options.images)
    elif options.what == "autoattack":
        peers.autoattack(device, rounds, options.images)
    elif options.what == "minimum":
        minimum.main(device, rounds, options.images, options.steps)
    elif options.what == "parts":
        parts.main(device, rounds, options.images, options.steps)
    else:
        training.main(device, options.seeds)


def install() -> None:
    """Install each peer that pyproject.toml names; one that fails is reported and left out."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    for peer in project["project"]["optional-dependencies"]["bench"]:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation"]
        if subprocess.run([*command, peer]).returncode:
            print(f"not installed: {peer}")


if __name__ == "__main__":
    main()
