"""Write the table of book/results.json into README.md, between its two markers."""

import json
from pathlib import Path

from advlib.recipes import results_table

START, END = "<!-- results -->\n", "<!-- /results -->\n"


def main() -> None:
    """Replace what stands between the markers."""
    root = Path(__file__).parent.parent
    found = json.loads((root / "book" / "results.json").read_text(encoding="utf-8"))
    readme = root / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    readme.write_text(before + START + results_table(found) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
