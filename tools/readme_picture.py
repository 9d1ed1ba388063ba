"""Draw the picture at the top of README.md, that of the book's front page.

Run it from the project's folder: `python -m tools.readme_picture`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
from lab import front_picture, networks  # noqa: E402

if __name__ == "__main__":
    front_picture(networks()["standard"]).savefig(ROOT / "book" / "_static" / "front.png")
