"""Command line: `python -m advlib results` measures the book's numbers again."""

import argparse
import json
import os
from pathlib import Path

from advlib import recipes


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(prog="python -m advlib", description=__doc__)
    commands = parser.add_subparsers(required=True)
    results = commands.add_parser("results", help="train, attack, and write book/results.json")
    results.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    results.add_argument("--device", help="cpu, cuda, ... (default: the best one present)")
    results.add_argument("--out", type=Path, default=Path("book/results.json"))
    arguments = parser.parse_args()
    if not arguments.out.parent.is_dir():
        parser.error(f"--out: {arguments.out.parent} is not a folder; run this from the root")
    found = recipes.results(arguments.seeds, device=arguments.device)
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, arguments.out)
    print(recipes.results_table(found))


if __name__ == "__main__":
    main()
