"""MyST Markdown to plain Markdown: what a notebook on Colab can show.

Sphinx understands directives and roles; Jupyter and Colab print them raw. `convert` rewrites a
chapter's text block by block; `DIRECTIVES` says what becomes of each. An unknown one is refused.

Numbers (Fig. 4.2, Exercise 4.1, equation (4.3)) are counted in reading order, as Sphinx does.
"""

import ast
import json
import posixpath
import re
from math import ceil
from pathlib import Path

import yaml
from plain_inline import Page, inline, picture

# Lines that mark, for whoever cuts the text into cells, where a foldable stretch begins and ends.
FOLD, UNFOLD = "\x00fold", "\x00unfold"

# ---- directives ------------------------------------------------------------------------------

BOXES = ["note", "tip", "warning", "important", "caution", "attention", "danger", "error", "hint"]
TITLED_BOXES = ["admonition", "dropdown", "topic", "sidebar", "margin"]


def details(title: str, text: str) -> str:
    """A foldable block. Markdown is not read inside <summary>, so its code spans become HTML."""
    title = re.sub(r"`([^`]+)`", r"<code>\1</code>", title).replace("**", "")
    return f"<details>\n<summary>{title}</summary>\n\n{text.strip()}\n\n</details>"


def box(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """An admonition, as a quote with a bold title or as a foldable block."""
    if name in (*BOXES, "seealso"):
        title = "See also" if name == "seealso" else name.capitalize()
        body = f"{arg}\n{body}"
    else:
        title = inline(arg, page)
    text = convert(body, page).strip()
    if name == "dropdown" or "dropdown" in options.get("class", "").split():
        return details(title, text)
    quoted = f"**{title}**\n\n{text}" if title else text
    return "\n".join(f"> {line}".rstrip() for line in quoted.split("\n"))


def exercise(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """An exercise, under a heading of its own."""
    title = "Exercise" if "nonumber" in options else f"Exercise {page.number('exercise')}"
    page.add_label(options.get("label", ""), title, title)
    heading = f"{'#' * min(page.level + 1, 6)} {title}"
    if arg:
        heading += f" ({inline(arg, page)})"
    return f"{heading}\n\n{convert(body, page)}"


def solution(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """A solution: foldable text, or, when it holds code cells, a stretch of cells that folds."""
    title = f"Solution to {page.find_label(arg).text}"
    page.add_label(options.get("label", ""), title, title)
    if name == "solution":
        return details(title, convert(body, page))
    return f"{FOLD}\n{'#' * min(page.level + 2, 6)} {title}\n\n{convert(body, page)}"


def math(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """A display equation, tagged with its number when it has a label."""
    tag = ""
    if label := options.get("label"):
        number = page.number("equation")
        page.add_label(label, f"({number})", f"({number})")
        tag = f" \\tag{{{number}}}"
    return f"$$\n{body.strip() or arg}{tag}\n$$"


def figure(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """A picture from a file, with its caption."""
    shown = picture(options.get("alt", ""), arg, page)
    return f"{shown}\n\n{caption(page, 'Fig.', body.strip(), options.get('name', ''))}".strip()


def caption(page: Page, kind: str, text: str, label: str) -> str:
    """A numbered caption in italics; nothing, and no number, without text."""
    if not text:
        page.add_label(label, label)
        return ""
    number = f"{kind} {page.number(kind)}"
    text = " ".join(inline(text, page).split())
    page.add_label(label, text, number)
    return f"*{number}* {text}"


def table(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """A table with a numbered caption."""
    return f"{caption(page, 'Table', arg, options.get('name', ''))}\n\n{convert(body, page)}"


def code(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """Code that is shown, not run; `literalinclude` reads it from a file of the repository."""
    if name == "literalinclude":
        path = page.book.root / posixpath.dirname(page.name) / arg
        unread = set(options) - {"pyobject", "language", "name"}
        if not path.exists() or unread:
            page.unknown(f"literalinclude of '{arg}' {sorted(unread) or '(no such file)'}")
            return ""
        body, arg = path.read_text(encoding="utf8"), options.get("language", "python")
        if wanted := options.get("pyobject"):
            found = [n for n in ast.walk(ast.parse(body)) if getattr(n, "name", "") == wanted]
            if not found:
                page.unknown(f"literalinclude of '{wanted}'")
            body = "\n\n".join(ast.get_source_segment(body, node) or "" for node in found[:1])
    return f"```{arg}\n{body.rstrip()}\n```"


def glossary(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """A glossary, as a list of bold terms."""
    entries = re.split(r"\n(?=\S)", body.strip())
    pairs = [entry.partition("\n")[::2] for entry in entries]
    return "\n".join(f"- **{term}**: {' '.join(inline(d, page).split())}" for term, d in pairs)


Option = tuple[bool, str, str]


def read_quiz(arg: str, body: str) -> tuple[str, list[Option]]:
    """A quiz's question and its options, each as (is it right, its words, what to say of it).

    The body may begin with more of the question; then comes a list whose items begin with
    `[x]` (the right one) or `[ ]`, followed by a blank line and an indented paragraph.
    """
    start, *items = re.split(r"^- \[([ x])\] ", body, flags=re.M)
    question = " ".join(f"{arg} {start}".split())
    options = []
    for mark, item in zip(items[::2], items[1::2], strict=True):
        words, _, feedback = (" ".join(part.split()) for part in item.partition("\n\n"))
        if not words or not feedback:
            raise ValueError(f"quiz {question!r}: an option lacks its words or its feedback")
        if re.search(r"\{(?!math)[\w:]+\}`|\]\(", words):
            raise ValueError(f"quiz {question!r}: an option is a button and can't hold a link")
        options.append((mark == "x", words, feedback))
    if not question or not 2 <= len(options) <= 6 or sum(right for right, *_ in options) != 1:
        raise ValueError(
            f"quiz {question!r}: needs a question, two to six options, one of them right"
        )
    return question, options


def quiz(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """A question with lettered options, and what to say of each in a foldable block."""
    try:
        question, choices = read_quiz(arg, body)
    except ValueError as fault:
        page.unknown(str(fault))
        return ""
    shown, answers = [f"**{question}**\n"], []
    for letter, (right, words, feedback) in zip("ABCDEF", choices, strict=False):
        shown.append(f"- **{letter}.** {words}")
        answers.append(f"- **{letter}.** {'✓ Right.' if right else '✗'} {feedback}")
    text, folded = (inline("\n".join(lines), page) for lines in (shown, answers))
    return f"{text}\n\n{details('Answers', folded)}"


def bibliography(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """The references this chapter has cited so far."""
    entries = [page.book.citations[key] for key in page.cited]
    titles = [f"[{e['title']}]({e['url']})" if e["url"] else e["title"] for e in entries]
    return "\n".join(
        f"- {entry['names']} ({entry['year']}). {title}"
        for entry, title in zip(entries, titles, strict=True)
    )


def badges(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """The expected running time, which is all that is left of the badges in a notebook."""
    time = running_time(page.book.root, page.name)
    return f"*{time}*" if time else ""


def running_time(root: Path, name: str) -> str:
    """The words of {chapter-badges} on a page's running time; "" if it has not been measured."""
    path = root / "benchmarks" / "results" / "build.json"
    rows = json.loads(path.read_text(encoding="utf8"))["rows"] if path.exists() else {}
    return f"Runs in {minutes(rows[name]['yardsticks'])} on two CPU cores." if name in rows else ""


def minutes(yardsticks: float) -> str:
    """How long that is, from the fastest to the slowest machine on which we took a yardstick."""
    low, high = int(yardsticks * 35 / 60), ceil(yardsticks * 75 / 60)
    if low:
        return f"{low} to {high} minutes"
    return f"under {high} minutes" if high > 1 else "under a minute"


def passed_on(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """A container of which only the content, under a bold title, matters."""
    return (f"**{inline(arg, page)}**\n\n" if name == "tab-item" else "") + convert(body, page)


def marker(page: Page, name: str, arg: str, options: dict[str, str], body: str) -> str:
    """The end of a gated block, or something only the site has."""
    return UNFOLD if name == "solution-end" else ""


DIRECTIVES = {
    **dict.fromkeys([*BOXES, "seealso", *TITLED_BOXES, "epigraph"], box),
    **dict.fromkeys(["exercise", "exercise-start"], exercise),
    **dict.fromkeys(["solution", "solution-start"], solution),
    **dict.fromkeys(["figure", "image"], figure),
    **dict.fromkeys(["code", "code-block", "literalinclude"], code),
    **dict.fromkeys(["exercise-end", "solution-end", "contents", "tableofcontents"], marker),
    **dict.fromkeys(["tab-set", "tab-item", "div", "container"], passed_on),
    "math": math,
    "table": table,
    "glossary": glossary,
    "quiz": quiz,
    "bibliography": bibliography,
    "chapter-badges": badges,
}


def directive(info: str, lines: list[str], page: Page) -> str:
    """One directive, given the text after its fence marker and the lines inside."""
    match = re.fullmatch(r"\{([\w:.-]+)\}\s*(.*?)\s*", info)
    if match is None or match[1] not in DIRECTIVES:
        page.unknown(f"directive '{info.strip()}'")
        return ""
    options, body = split_options(lines)
    return DIRECTIVES[match[1]](page, match[1], match[2], options, "\n".join(body))


def split_options(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """A directive's options (`:key: value` lines, or YAML between `---`) and its body."""
    if lines and lines[0].strip() == "---":
        end = next(i for i in range(1, len(lines)) if lines[i].strip() == "---")
        read = yaml.safe_load("\n".join(lines[1:end])) or {}
        return {str(k): str(v) for k, v in read.items()}, lines[end + 1 :]
    options: dict[str, str] = {}
    while lines and (match := re.fullmatch(r":([\w-]+):\s*(.*?)\s*", lines[0])):
        options[match[1]] = match[2]
        lines = lines[1:]
    return options, lines


# ---- blocks ----------------------------------------------------------------------------------

FENCE = re.compile(r"(\s*)(`{3,}(?=[^`]*$)|~{3,}|:{3,})\s*(.*)")
AMSMATH = {"align": "aligned", "gather": "gathered", "multline": "gathered", "equation": ""}


def convert(text: str, page: Page) -> str:
    """MyST blocks in plain Markdown; `page` carries the numbers from one piece to the next."""
    lines = text.split("\n")
    out: list[str] = []
    words: list[str] = []  # the paragraph being read: roles may run over a line's end
    target = ""

    def flush() -> None:
        if words:
            out.append(inline("\n".join(words), page))
            words.clear()

    i = 0
    while i < len(lines):
        line = lines[i]
        if fence := FENCE.fullmatch(line):
            flush()
            indent, marks, info = fence.groups()
            end = closing_fence(lines, i, marks, page)
            body = [part.removeprefix(indent) for part in lines[i + 1 : end]]
            if info.startswith("{") or marks[0] == ":":
                block = directive(info, body, page)
            else:
                block = "\n".join([marks + info, *body, marks])
            out += ["", *(indent + part for part in block.split("\n")), ""]
            i = end
        elif re.match(r"\s*`{3,}\{", line):
            page.unknown(f"'{line.strip()}', whose backticks keep it from being a directive,")
        elif line.lstrip().startswith("$$") or re.match(r"\s*\\begin\{", line):
            flush()
            end, block = equation(lines, i, page)
            out.append(block)
            i = end
        elif match := re.fullmatch(r"\(([^()\s]+)\)=\s*", line):
            flush()
            target = match[1]
        elif match := re.fullmatch(r"(#{1,6})\s+(.*?)\s*", line):
            flush()
            page.level = len(match[1])
            title = inline(match[2], page)
            page.add_label(target, title)
            target = ""
            out.append(f"{match[1]} {title}")
        elif match := re.fullmatch(r"\s{0,3}:\s+(.*)", line):  # a definition under its term
            words[-1:] = [f"**{' '.join(words[-1:])}**: {match[1]}"]
        elif line.startswith("%") or line.startswith("+++"):
            flush()
        elif line.strip():
            words.append(line)
        else:
            flush()
            out.append("")
        i += 1
    flush()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip("\n")


def closing_fence(lines: list[str], start: int, marks: str, page: Page) -> int:
    """The line that closes the fence opened at `start` (the same mark, at least as long)."""
    close = re.compile(rf"\s*{re.escape(marks[0])}{{{len(marks)},}}\s*")
    for i in range(start + 1, len(lines)):
        if close.fullmatch(lines[i]):
            return i
    page.unknown(f"'{lines[start].strip()}', which is never closed in its cell,")
    return len(lines)


def equation(lines: list[str], start: int, page: Page) -> tuple[int, str]:
    """The display equation that begins at line `start`: its last line and its plain form."""
    if environment := re.match(r"\s*\\begin\{(\w+)(\*?)\}", lines[start]):
        name, star = environment.groups()
        end_mark = re.compile(rf"(.*)\\end\{{{name}{re.escape(star)}\}}\s*()")
    else:
        end_mark = re.compile(r"(.*)\$\$\s*(?:\(([^()\s]+)\))?\s*")
    body = lines[start].strip()
    body = body[environment.end() - environment.start(0) :] if environment else body[2:]
    collected, i = [], start
    while not (match := end_mark.fullmatch(body)):
        collected.append(body)
        i += 1
        if i == len(lines):
            page.unknown(f"equation '{lines[start].strip()}', which is never closed,")
            return i, ""
        body = lines[i]
    tex = "\n".join([*collected, match[1]]).strip()
    label = match[2] or ""
    if environment:
        if name not in AMSMATH:
            page.unknown(f"environment '{name}'")
        inner = AMSMATH.get(name, "")
        tex = f"\\begin{{{inner}}}\n{tex}\n\\end{{{inner}}}" if inner else tex
        label = "" if star else f"{page.name}-{start}"  # Sphinx numbers these too
    return i, math(page, "math", "", {"label": label}, tex)
