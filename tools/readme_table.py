"""Write the tables of book/results.json and benchmarks/results into README.md.

Run it from the project's folder: `python -m tools.readme_table`.
"""

import json
from pathlib import Path

from advlib.recipes import results_table
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
    results = json.loads((ROOT / "book" / "results.json").read_text(encoding="utf-8"))
    peers = json.loads(
        (ROOT / "benchmarks" / "results" / "peers-cpu.json").read_text(encoding="utf-8")
    )
    return {"results": results_table(results), "speed": speed_table(peers)}


if __name__ == "__main__":
    main()
