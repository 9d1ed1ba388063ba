"""Command line: measure the book's numbers again.

`python -m advlib results` trains and attacks, `python -m advlib report` attacks more strongly.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from advlib import load_data, recipes, robustness_report


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(prog="python -m advlib", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    results = commands.add_parser("results", help="train, attack, and write book/results.json")
    results.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    report = commands.add_parser("report", help="robustness reports, into book/reports.json")
    report.add_argument("--images", type=int, default=1000)
    for command, out in ((results, "book/results.json"), (report, "book/reports.json")):
        command.add_argument("--device", help="cpu, cuda, ... (default: the best one present)")
        command.add_argument("--out", type=Path, default=Path(out))
    arguments = parser.parse_args()
    if not arguments.out.parent.is_dir():
        parser.error(f"--out: {arguments.out.parent} is not a folder; run this from the root")
    if arguments.command == "results":
        found = recipes.results(arguments.seeds, device=arguments.device)
        print(recipes.results_table(found))
    else:
        found = reports(arguments.images, arguments.device)
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, arguments.out)


def reports(images: int, device: str | None) -> dict[str, Any]:
    """Report on both networks of chapter 6, on the first test images, at the book's eps."""
    test = load_data(device=device)[1]
    found = {}
    for kind, make in (("standard", recipes.standard_net), ("robust", recipes.robust_net)):
        net = make(device=device)
        report = robustness_report(net, test.x[:images], test.y[:images], eps=recipes.EPS)
        print(f"{kind}: {report}\n", flush=True)
        found[kind] = json.loads(report.to_json())
        del found[kind]["broken_by"]  # the table counts it, and it would be a line per image
    return found


if __name__ == "__main__":
    main()
