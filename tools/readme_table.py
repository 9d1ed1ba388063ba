"""Write what the JSON files in book and benchmarks/results hold into README.md.

Run it from the project's folder: `python -m tools.readme_table`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from advlib.book.recipes import reports_table, results_table
from benchmarks.peers import speed_table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from execution import minutes  # noqa: E402


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
    """Each table, and the sentence on building, under the name of its markers."""
    return {
        "results": results_table(_read("book/results.json")),
        "reports": reports_table(_read("book/reports.json")),
        "speed": speed_table(_read("benchmarks/results/peers.json")),
        "build": build_sentence(_read("benchmarks/results/build.json")),
    }


def build_sentence(found: Any) -> str:
    """How long `make book` and `make test` take."""
    cost = {name: row["yardsticks"] for name, row in found["rows"].items()}
    book, test, again = (
        f"{cost[name]:.1f} yardsticks ({minutes(cost[name])})"
        for name in ("make book", "make test", "make test again")
    )
    return (
        f"On two CPU cores `make book` takes {book} and `make test` {test}, the installation not "
        f"counted.\nA second `make test`, with nothing changed, takes {again}.\n"
    )


def _read(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
