"""Write the tables of the JSON files in book and benchmarks/results into README.md.

Run it from the project's folder: `python -m tools.readme_table`.
"""

import json
from pathlib import Path
from typing import Any

from advlib.recipes import reports_table, results_table
from benchmarks.peers import speed_table

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Replace what stands between each pair of markers."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, table in tables().items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        before, rest = text.split(start)
        text = before + start + table + end + rest.split(end)[1]
    readme.write_text(text, encoding="utf-8")


def tables() -> dict[str, str]:
    """Each table under the name of its markers."""
    return {
        "results": results_table(_read("book/results.json")),
        "reports": reports_table(_read("book/reports.json")),
        "speed": speed_table(_read("benchmarks/results/peers-cpu.json")),
    }


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
