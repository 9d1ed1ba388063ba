"""The last touches to a written page: what the theme and docutils leave out of its HTML."""

import re
from html import escape
from itertools import count
from pathlib import Path

from PIL import Image

IMAGE = re.compile(r'<img\b[^>]*?\bsrc="(?:[^"]*/)?([^"/]+)"[^>]*>')
ROLES = {
    # axe: a list of lines in a signature is no list of terms; roles that are deprecated
    "<dl>\n<dd>": '<dl role="presentation">\n<dd>',
    'role="doc-biblioentry"': 'role="listitem"',
}
# Before anything is drawn: the theme knows its mode only once its last script has run.
THEME = """\
if (!document.documentElement.dataset.mode) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  Object.assign(document.documentElement.dataset, {mode: "auto", theme: dark ? "dark" : "light"});
}"""
NOT_FOUND = """\
<h1>Page not found</h1>
<ul>
<li><a href="{prefix}book/index.html">The front page lists all chapters</a>, as the menu does.</li>
<li><a href="{prefix}search.html">Search the book</a>.</li>
<li><a href="{prefix}book/attack_lab.html">Or break a network</a>, now that you are here.</li>
</ul>
"""


def mend(html: str, sources: dict[str, Path]) -> str:
    """Size the images of `html`, so that nothing jumps; let those below the first load lazily.

    `sources` has the file of each image by its name in the site; others are sized by hand.
    """
    place = count()

    def completed(tag: re.Match[str]) -> str:
        attributes = 'decoding="async" ' + ('loading="lazy" ' if next(place) else "")
        source = sources.get(tag[1])
        if source and source.suffix != ".svg":
            with Image.open(source) as image:
                attributes += 'width="{}" height="{}" '.format(*image.size)
        return tag[0].replace("<img ", f"<img {attributes}", 1)

    html = IMAGE.sub(completed, html)
    for old, new in ROLES.items():
        html = html.replace(old, new)
    return html


def flat(html: str) -> str:
    """The modules in one list: Sphinx puts a list of a package's parts outside any item of it."""
    heading, _, rest = html.partition("<ul>")
    return "\n".join([heading, "<ul>", *re.findall("<li>.*?</li>", rest), "</ul>"])


def not_found(prefix: str) -> dict[str, str]:
    """The page for addresses that don't exist, with links that work at any depth."""
    return {"title": "Page not found", "body": NOT_FOUND.format(prefix=escape(prefix))}
