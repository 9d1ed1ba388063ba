"""What a chapter may refer to, and its inline text: links, images, roles, citations.

`inline` turns the inline MyST of a paragraph into plain Markdown that Jupyter and Colab show.
Whatever it does not know raises `UnknownMyst`, so nothing leaks.
"""

import base64
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


class UnknownMyst(ValueError):
    """A directive, role, label or link that has no plain Markdown form."""


@dataclass
class Label:
    """What a label points at: the page, its words, and its number where it has one."""

    page: str
    text: str
    number: str = ""


@dataclass
class Book:
    """Everything a chapter's text may refer to."""

    root: Path
    pages: dict[str, str] = field(default_factory=dict)  # every toc page -> its title
    numbers: dict[str, str] = field(default_factory=dict)  # numbered page -> "4"
    chapters: list[str] = field(default_factory=list)  # the pages that become notebooks
    labels: dict[str, Label] = field(default_factory=dict)
    citations: dict[str, dict[str, str]] = field(default_factory=dict)
    slug: str | None = None
    commit: str = "HEAD"


@dataclass
class Page:
    """Where we are while converting a page; with `collect` it notes labels and lets all pass."""

    name: str
    book: Book
    collect: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    level: int = 1
    cited: list[str] = field(default_factory=list)

    def number(self, kind: str) -> str:
        """The next number of this kind: "4.2" in a numbered chapter, "2" elsewhere."""
        self.counts[kind] += 1
        chapter = self.book.numbers.get(self.name)
        return f"{chapter}.{self.counts[kind]}" if chapter else str(self.counts[kind])

    def add_label(self, label: str, text: str, number: str = "") -> None:
        """Note what `label` points at, on the collecting pass."""
        if label and self.collect:
            self.book.labels[label.lower()] = Label(self.name, text, number)

    def find_label(self, label: str) -> Label:
        """What `label` points at."""
        if label.lower() not in self.book.labels:
            self.unknown(f"label '{label}'")
        return self.book.labels.get(label.lower(), Label(self.name, label))

    def unknown(self, what: str) -> None:
        """Refuse `what`, except on the collecting pass."""
        if not self.collect:
            raise UnknownMyst(f"{self.name}: {what} has no plain Markdown form")


# ---- links ---------------------------------------------------------------------------------


def site_url(slug: str | None) -> str:
    """Where GitHub Pages serves the book of `slug`, with a slash at the end; "" without a slug."""
    if not slug:
        return ""
    owner, repo = slug.split("/")
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if repo.lower() == host else f"https://{host}/{repo}/"


def page_link(text: str, target: str, page: Page) -> str:
    """`text` as a link from a notebook to another page of the book; plain text to its own page."""
    if target == page.name:
        return text
    if target in page.book.chapters:
        return f"[{text}]({posixpath.basename(target)}.ipynb)"
    return f"[{text}]({site_url(page.book.slug) or '../'}{target}.html)"


def link(text: str, target: str, page: Page) -> str:
    """A Markdown link whose target is a URL, a label, a page or a file of the repository."""
    if re.match(r"(https?|mailto):", target):
        return f"[{inline(text, page)}]({target})"
    if target.startswith("#"):
        label = page.find_label(target[1:])
        return page_link(inline(text, page) or label.text, label.page, page)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page.name), target.split("#")[0]))
    name = path.removesuffix(".md")
    if name in page.book.pages:
        return page_link(inline(text, page) or page.book.pages[name], name, page)
    if not (page.book.root / path).exists():
        page.unknown(f"link to '{target}', which does not exist,")
    if page.book.slug:
        return f"[{text}](https://github.com/{page.book.slug}/blob/{page.book.commit}/{path})"
    return inline(text, page)


def picture(alt: str, source: str, page: Page) -> str:
    """An image; a local file travels inside the notebook, so that it shows everywhere."""
    if not re.match(r"https?:", source):
        path = page.book.root / posixpath.dirname(page.name) / source
        if not path.exists():
            page.unknown(f"image '{source}', which does not exist,")
            return ""
        kind = {".svg": "svg+xml", ".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
        source = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f"![{alt}]({source})"


# ---- roles and other inline text ------------------------------------------------------------

INLINE = re.compile(
    r"""(?P<escape>\\[^\w\s])
    |\{(?P<role>[\w:.+-]+)\}(?P<rtick>`+)(?P<content>.+?)(?<!`)(?P=rtick)(?!`)
    |(?P<code>(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`))
    |(?P<math>\$\$.+?\$\$|\$(?!\s)(?:\\.|[^$\\])+?(?<!\s)\$(?!\d))
    |!\[(?P<alt>[^\]]*)\]\((?P<source>[^)\s]+)[^)]*\)(?:\{[^}]*\})?
    |\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)(?:\s+"[^"]*")?\)
    |\[(?P<span>[^\[\]]*)\]\{[^}]*\}""",
    re.S | re.X,
)
PYTHON_ROLES = ["func", "class", "meth", "attr", "mod", "data", "exc", "obj", "const"]


def inline(text: str, page: Page) -> str:
    """Text with roles, links and images in plain Markdown; code and mathematics untouched."""

    def replace(match: re.Match[str]) -> str:
        part = match.groupdict()
        if part["role"]:
            return role(part["role"], " ".join(part["content"].split()), page)
        if part["source"]:
            return picture(part["alt"], part["source"], page)
        if part["target"]:
            return link(part["text"], part["target"], page)
        if part["span"] is not None:
            return inline(part["span"], page)
        return match[0]

    return INLINE.sub(replace, text)


def role(name: str, content: str, page: Page) -> str:
    """One role, such as {ref}`words <label>`, as plain Markdown."""
    explicit = re.fullmatch(r"(.*\S)\s*<([^<>]+)>", content)
    text, target = explicit.groups() if explicit else ("", content)
    if name.removeprefix("py:") in PYTHON_ROLES:
        short = target.removeprefix("~").split(".")[-1] if target[0] == "~" else target
        return f"`{text or short + '()' * name.endswith(('func', 'meth'))}`"
    if name.startswith("cite"):
        return cite(name, target, page)
    if name in ("ref", "numref"):
        label = page.find_label(target)
        words = text or label.number or label.text if name == "numref" else text or label.text
        number = label.number.split(" ")[-1]
        words = words.replace("%s", number).replace("{number}", number)
        return page_link(words, label.page, page)
    if name == "eq":
        label = page.find_label(target)
        return page_link(label.number, label.page, page)
    if name == "doc":
        return link(text, (target[1:] if target[0] == "/" else target) + ".md", page)
    if name.startswith("glue"):  # filled in on the site; here the reader's own run has the value
        return f"`{target.split(':')[0]}`"
    simple = {
        "math": f"${content}$",
        "term": text or target,
        "abbr": content.split(" (")[0],
        "sub": f"<sub>{content}</sub>",
        "sup": f"<sup>{content}</sup>",
        "kbd": f"<kbd>{content}</kbd>",
        "code": f"`{content}`",
    }
    if name not in simple:
        page.unknown(f"role {{{name}}}`{content}`")
    return simple.get(name, "")


def cite(name: str, keys: str, page: Page) -> str:
    """A citation as linked names and year: in the sentence for {cite:t}, in brackets otherwise."""
    cited = []
    for key in re.split(r"\s*,\s*", keys):
        entry = page.book.citations.get(key)
        if entry is None:
            page.unknown(f"citation '{key}'")
            continue
        page.cited += [key] * (key not in page.cited)
        names = entry["names"]
        words = f"{names} ({entry['year']})" if name == "cite:t" else f"{names}, {entry['year']}"
        cited.append(f"[{words}]({entry['url']})" if entry["url"] else words)
    if name not in ("cite", "cite:p", "cite:t"):
        page.unknown(f"role {{{name}}}`{keys}`")
    return ", ".join(cited) if name == "cite:t" else f"({'; '.join(cited)})"
