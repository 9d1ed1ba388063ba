"""A page's nodes as plain Markdown, which Jupyter and Colab can show.

`FORMS` says what becomes of each kind of node. One without a form is a fault of the page.
"""

import base64
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from contents import Book
from docutils import nodes
from sphinx.environment import BuildEnvironment
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node

BELOW = "\n\n"
# what the parser took for text: fences, roles and labels that it didn't understand
RAW_MYST = re.compile(r":::|```|~~~|\{[\w:.+-]+\}$|^\([^()\s]+\)=|^\+\+\+|^%", re.M)
SPECIAL = re.compile(r"(?im)[\\`*$]|<(?=[a-z/!?])|(?<!\w)_|_(?!\w)|\](?=[(\[])|^[-+#>](?=[ #])")


@dataclass
class Page:
    """A page on its way into a notebook, and what is wrong with it."""

    name: str
    book: Book
    env: BuildEnvironment
    faults: list[str] = field(default_factory=list)

    def number(self, kind: str, node: Any) -> str:
        """The number that Sphinx gave to a figure, table, exercise or equation; or ""."""
        numbers = self.env.toc_fignumbers.get(self.name, {}).get(kind, {})
        return ".".join(map(str, numbers.get((node["ids"] or [""])[0], ())))


def markdown(node: Any, page: Page) -> str:
    """The form of a node; "" and a fault, if it has none."""
    form = next((FORMS[kind] for kind in type(node).__mro__ if kind in FORMS), None)
    shown = form(node, page) if form else None
    if shown is None:
        kind = type(node).__name__
        page.faults.append(f"{page.name}: {kind} {node.astext()[:60]!r} has no plain Markdown form")
    return shown or ""


def words(node: Any, page: Page, between: str = "") -> str:
    """What stands in a paragraph, or, with BELOW between, in several."""
    return between.join(filter(None, (markdown(child, page) for child in node.children)))


def literal(node: Any, page: Page) -> str:
    shown = " ".join(node.astext().split())
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


def link(node: Any, page: Page) -> str:
    """A link to a paper, a notebook or the site; only words, if it leads to the same page."""
    shown, target = words(node, page), node.get("refuri", "")
    if "badge-colab" in node["classes"]:
        return ""
    path, _, place = target.partition("#")
    name = posixpath.normpath(posixpath.join(posixpath.dirname(page.name), path))
    name = name.removesuffix(".html") if path else page.name
    if not re.match(r"\w+:", target):
        target = page.book.address(name, place) if name != page.name else ""
    for cited in page.env.get_domain("cite").citations:
        if (cited.bibliography_key.docname, cited.citation_id) == (name, place):
            found = cited.entry.fields
            target = found.get("url") or f"https://doi.org/{found['doi']}"
    return f"[{shown}]({target})" if target else shown


def picture(node: Any, page: Page) -> str:
    """An image; a local file travels inside the notebook, so that it shows everywhere."""
    source, path = node["uri"], page.book.root / node["uri"]
    if not re.match(r"\w+:", source):
        kind = {".svg": "svg+xml", ".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
        source = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f"![{node.get('alt', '')}]({source})"


def heading(node: Any, page: Page) -> str:
    """A heading, of an exercise with its number."""
    level, above, shown = 0, node.parent, words(node, page)
    if isinstance(above, solution_node):
        level, shown = 2, above["title"]
    elif isinstance(above, exercise_enumerable_node):
        level, shown = 1, node["title"] % page.number("exercise", above) + shown
    while above:
        level, above = level + isinstance(above, nodes.section), above.parent
    return f"{'#' * min(level, 6)} {shown}"


def caption(node: Any, page: Page) -> str:
    """The caption of a table or a figure, after its number."""
    kind = "table" if isinstance(node.parent, nodes.table) else "figure"
    label = page.env.config.numfig_format[kind] % page.number(kind, node.parent)
    return f"*{label}* {' '.join(words(node, page).split())}"


def equation(node: Any, page: Page) -> str | None:
    tag = f" \\tag{{{number}}}" if (number := page.number("displaymath", node)) else ""
    return None if node["nowrap"] else f"$$\n{node.astext().strip()}{tag}\n$$"


def listing(node: Any, page: Page) -> str:
    items = []
    for count, item in enumerate(node.children, node.get("start", 1)):
        mark = f"{count}. " if isinstance(node, nodes.enumerated_list) else "- "
        items.append(mark + re.sub(r"\n(?=.)", "\n" + " " * len(mark), markdown(item, page)))
    return "\n".join(items)


def details(title: str, content: str) -> str:
    """A foldable block. Markdown is not read inside <summary>, so its code spans become HTML."""
    title = re.sub(r"`([^`]+)`", r"<code>\1</code>", title)
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"


def admonition(node: Any, page: Page) -> str:
    """A quote under a bold title, or a foldable block."""
    title, content = type(node).__name__.capitalize(), words(node, page, BELOW)
    if isinstance(node[0], nodes.title):
        title, content = words(node[0], page), content.partition("\n\n")[2]
    if "dropdown" in node["classes"]:
        return details(title, content)
    return re.sub("^(?=.)", "> ", f"**{title}**\n\n{content}", flags=re.M).replace("\n\n", "\n>\n")


def table(node: Any, page: Page) -> str:
    """A table, below its caption if it has one."""
    rows = [
        [words(c, page, "<br>").replace("\n", " ").replace("|", r"\|") for c in row.children]
        for row in node.findall(nodes.row)
    ]
    rows.insert(1, ["---"] * len(rows[0]))
    above = [caption(child, page) + "\n" for child in node if isinstance(child, nodes.title)]
    return "\n".join([*above, *(f"| {' | '.join(row)} |" for row in rows)])


def quiz(node: Any, page: Page) -> str | None:
    """Lettered options, and what to say of each in a foldable block."""
    if "quiz" not in node["classes"]:
        return None
    choices = [child for child in node if isinstance(child, nodes.inline)]
    question, *feedback = (child for child in node if isinstance(child, nodes.paragraph))
    options, answers = f"**{words(question, page)}**\n", ""
    for letter, choice, answer in zip("ABCDEF", choices, feedback, strict=False):
        verdict = "✓ Right." if "right" in answer[0]["classes"] else "✗"
        said = "".join(markdown(part, page) for part in answer.children[1:])
        options += f"\n- **{letter}.** {words(choice, page)}"
        answers += f"\n- **{letter}.** {verdict}{said}"
    return f"{options}\n\n{details('Answers', answers.strip())}"


FORMS: dict[type, Callable[[Any, Page], str | None]] = {
    nodes.Text: lambda text, page: None if RAW_MYST.search(text) else SPECIAL.sub(r"\\\g<0>", text),
    nodes.inline: words,
    nodes.literal: literal,
    **dict.fromkeys([nodes.figure, nodes.list_item], lambda node, page: words(node, page, BELOW)),
    **dict.fromkeys([nodes.bullet_list, nodes.enumerated_list], listing),
    **dict.fromkeys([nodes.Invisible, nodes.target], lambda node, page: ""),
    nodes.compound: lambda node, page: "" if "toctree-wrapper" in node["classes"] else None,
    nodes.reference: link,
    nodes.emphasis: lambda node, page: f"*{words(node, page)}*",
    nodes.strong: lambda node, page: f"**{words(node, page)}**",
    nodes.math: lambda node, page: f"${node.astext().strip()}$",
    nodes.math_block: equation,
    nodes.image: picture,
    nodes.caption: caption,
    nodes.title: heading,
    nodes.paragraph: lambda node, page: words(node, page).strip(),
    nodes.literal_block: lambda n, page: f"```{n.get('language', '')}\n{n.astext().rstrip()}\n```",
    nodes.Admonition: admonition,
    nodes.table: table,
    nodes.container: quiz,
}
