"""The book's toolchain: conversion to notebooks, the Colab links, the collector, the skeleton."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_cache import get_cache
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import read_myst_markdown_notebook
from myst_nb.core.utils import coalesce_streams
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = ROOT / "book" / "_ext"
sys.path.insert(0, str(EXTENSION))
notebooks = importlib.import_module("notebooks")
plain_inline = importlib.import_module("plain_inline")
check_html = importlib.import_module("check_html")
execution = importlib.import_module("execution")
pages = importlib.import_module("pages")
UnknownMyst = plain_inline.UnknownMyst

CHAPTERS = [name for name, number in notebooks.read_toc(ROOT) if number]
SECTIONS = [
    "What you will learn",
    "Set up",
    "Predict first",
    "The idea",
    "The idea in code",
    "The experiment",
    "Common mistakes",
    "Quick quiz",
    "Exercises",
    "Key takeaways",
    "What next",
]
HEADER = """\
---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {name: python3, display_name: Python 3, language: python}
---
"""
TOC = """\
format: jb-book
root: book/index
parts:
  - caption: One
    numbered: 1
    chapters: [{file: book/01_one}, {file: book/02_two}]
  - caption: Two
    chapters: [{file: book/notation}]
"""
ONE = """\
# One

(idea)=
## The idea

```{code-cell}
1 + 1
```

```{code-cell}
:tags: [hide-input]
print("hidden")
```

```{code-cell}
---
mystnb:
  image: {alt: A line}
  figure: {caption: A line from {cite:t}`madry2018`, name: fig-line}
---
None
```
""".replace("{caption: A line from {cite:t}`madry2018`,", '{caption: "A {cite:t}`madry2018`",')
TWO = """\
# Two

$$ y = x $$ (eq-two)

:::{exercise-start} Think
:label: ex-think
:::
:::{exercise-end}
:::

```{code-cell}
2
```
"""
REFERENCES = r"""
@inproceedings{madry2018,
  author = {M{\k{a}}dry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig},
  title = {Towards {D}eep Learning Models}, year = {2018}, booktitle = {ICLR},
  url = {https://arxiv.org/abs/1706.06083}}
@article{wong2020, author = {Wong, Eric and Rice, Leslie}, title = {Fast}, year = {2020},
  journal = {ICLR}, eprint = {2001.03994}}
"""


def write_book(root: Path, one: str = ONE, two: str = TWO) -> Path:
    files = {
        "_toc.yml": TOC,
        "book/index.md": "# The book\n",
        "book/notation.md": "(notation)=\n# Notation\n",
        "book/references.bib": REFERENCES,
        "book/01_one.md": HEADER + one,
        "book/02_two.md": HEADER + two,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    return root


def converted(root: Path, text: str, slug: str | None = None) -> str:
    """The Markdown cells that `text`, put at the end of chapter one, becomes."""
    book = notebooks.read_book(write_book(root, ONE + "\n" + text), slug, "abc")
    nb = notebooks.notebook("book/01_one", book)
    figure = next(i for i, cell in enumerate(nb.cells) if cell.source.startswith("*Fig."))
    return "\n\n".join(cell.source for cell in nb.cells[figure + 1 :])


# ---- MyST to plain Markdown --------------------------------------------------------------------

ROLES_AND_LINKS = {
    "{cite:t}`madry2018` say": "[Mądry et al. (2018)](https://arxiv.org/abs/1706.06083) say",
    "{cite:p}`wong2020`": "([Wong and Rice, 2020](https://arxiv.org/abs/2001.03994))",
    "{cite}`wong2020`": "([Wong and Rice, 2020](https://arxiv.org/abs/2001.03994))",
    "{ref}`idea`": "The idea",
    "{ref}`words <idea>`": "words",
    "{ref}`split\n<idea>`": "split",
    "{ref}`notation`": "[Notation](../book/notation.html)",
    "{numref}`fig-line`": "Fig. 1.1",
    "{numref}`picture %s <fig-line>`": "picture 1.1",
    "{ref}`ex-think`": "[Exercise 2.1](02_two.ipynb)",
    "{eq}`eq-two`": "[(2.1)](02_two.ipynb)",
    "{doc}`02_two`": "[Two](02_two.ipynb)",
    "{doc}`that <02_two>`": "[that](02_two.ipynb)",
    "[next](02_two.md)": "[next](02_two.ipynb)",
    "[next](02_two.md#part)": "[next](02_two.ipynb)",
    "[](#ex-think)": "[Exercise 2.1](02_two.ipynb)",
    "[`code` too](https://example.org/a.md)": "[`code` too](https://example.org/a.md)",
    "{func}`advlib.bim`": "`advlib.bim()`",
    "{py:class}`~advlib.data.Batches`": "`Batches`",
    "{term}`robust`": "robust",
    "{math}`x^2`": "$x^2$",
    "{glue:text}`clean:.3f`": "`clean`",
    "`{ref}` stays": "`{ref}` stays",
    "$\\{a\\}_i$ and \\$5": "$\\{a\\}_i$ and \\$5",
    "a\n% a remark\nb": "a\nb",
}


@pytest.mark.parametrize("myst", ROLES_AND_LINKS)
def test_role_or_link_becomes_plain(myst: str, tmp_path: Path) -> None:
    assert converted(tmp_path, myst) == ROLES_AND_LINKS[myst]


DIRECTIVES = {
    ":::{note}\nBe *calm*.\n:::": "> **Note**\n>\n> Be *calm*.",
    "```{tip} Inline\nmore\n```": "> **Tip**\n>\n> Inline\n> more",
    "::::{warning}\n:::{note}\nInner.\n:::\n::::": (
        "> **Warning**\n>\n> > **Note**\n> >\n> > Inner."
    ),
    ":::{admonition} A `b`\nText.\n:::": "> **A `b`**\n>\n> Text.",
    ":::{admonition} A `b`\n:class: tip dropdown\nText.\n:::": (
        "<details>\n<summary>A <code>b</code></summary>\n\nText.\n\n</details>"
    ),
    ":::{dropdown} Look\nText.\n:::": "<details>\n<summary>Look</summary>\n\nText.\n\n</details>",
    "- item\n  :::{note}\n  In.\n  :::": "- item\n\n  > **Note**\n  >\n  > In.",
    "$$\na = b\n$$": "$$\na = b\n$$",
    "$$ a = b $$ (eq-a)": "$$\na = b \\tag{1.1}\n$$",
    "```{math}\n:label: eq-m\na\n```": "$$\na \\tag{1.1}\n$$",
    "\\begin{align*}\na &= b\n\\end{align*}": "$$\n\\begin{aligned}\na &= b\n\\end{aligned}\n$$",
    ":::{exercise} Easy\n:label: e\nDo it.\n:::": "### Exercise 1.1 (Easy)\n\nDo it.",
    ":::{exercise}\n:label: e\nDo.\n:::\n:::{solution} e\n:class: dropdown\nDone.\n:::": (
        "### Exercise 1.1\n\nDo.\n\n"
        "<details>\n<summary>Solution to Exercise 1.1</summary>\n\nDone.\n\n</details>"
    ),
    "```{glossary}\nrobust\n  Not {math}`x`.\n```": "- **robust**: Not $x$.",
    "```{quiz} Why\nno {math}`x`?\n- [ ] Too\n  big.\n\n  No.\n- [x] Odd.\n\n  {ref}`idea`.\n```": (
        "**Why no $x$?**\n\n- **A.** Too big.\n- **B.** Odd.\n\n<details>\n"
        "<summary>Answers</summary>\n\n- **A.** ✗ No.\n- **B.** ✓ Right. The idea.\n\n</details>"
    ),
    "Term\n: its meaning": "**Term**: its meaning",
    "```{code-block} python\n:caption: c\nx = 1\n```": "```python\nx = 1\n```",
    "```python\n{ref}`kept`\n```": "```python\n{ref}`kept`\n```",
    "```{chapter-badges}\n```\nText": "Text",  # not measured
    "```{table} Four numbers\n| a |\n|---|\n| {eq}`eq-two` |\n```": (
        "*Table 1.1* Four numbers\n\n| a |\n|---|\n| [(2.1)](02_two.ipynb) |"
    ),
    "{cite:p}`wong2020`\n\n```{bibliography}\n```": (
        "([Wong and Rice, 2020](https://arxiv.org/abs/2001.03994))\n\n"
        "- Mądry et al. (2018). [Towards Deep Learning Models](https://arxiv.org/abs/1706.06083)\n"
        "- Wong and Rice (2020). [Fast](https://arxiv.org/abs/2001.03994)"
    ),
}


@pytest.mark.parametrize("myst", DIRECTIVES)
def test_directive_becomes_plain(myst: str, tmp_path: Path) -> None:
    assert converted(tmp_path, myst) == DIRECTIVES[myst]


@pytest.mark.parametrize(
    "myst",
    [
        "```{mermaid}\na\n```",
        ":::{mystery}\n:::",
        "::: plain\n:::",
        ":::{note}\nnever closed",
        "{mystery}`x`",
        "{cite:alp}`madry2018`",
        "{cite:p}`nobody1999`",
        "{ref}`nowhere`",
        "[text](07_missing.md)",
        "![alt](missing.png)",
        "> :::{note}\n> in a quote\n> :::",
        "```{literalinclude} missing.py\n```",
        "```{quiz} One option?\n- [x] Yes.\n\n  Too few.\n```",
        "```{quiz} None right?\n- [ ] No.\n\n  No.\n- [ ] No.\n\n  No.\n```",
        "```{quiz} Two right?\n- [x] No.\n\n  No.\n- [x] No.\n\n  No.\n```",
        "```{quiz} No feedback?\n- [x] No.\n- [ ] No.\n\n  No.\n```",
        "```{quiz} Backticks in `the` first line?\n- [x] No.\n\n  No.\n- [ ] No.\n\n  No.\n```",
        "```{quiz} A link in a button?\n- [x] {ref}`idea`\n\n  No.\n- [ ] No.\n\n  No.\n```",
        "```{quiz}\n- [x] No question.\n\n  No.\n- [ ] No.\n\n  No.\n```",
    ],
)
def test_unknown_myst_is_refused_by_name(myst: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownMyst, match="book/01_one"):
        converted(tmp_path, myst)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    book = notebooks.read_book(write_book(tmp_path, ONE + "{a}`x`\n", TWO + "{b}`x`\n"))
    with pytest.raises(UnknownMyst, match=r"(?s)01_one: role \{a\}.*02_two: role \{b\}"):
        notebooks.write_notebooks(book, tmp_path / "out")


@pytest.mark.parametrize("myst", [*DIRECTIVES, *ROLES_AND_LINKS])
def test_the_leak_check_sees_unconverted_myst(myst: str) -> None:
    is_myst = re.search(r"^\s*(```|:::+)\{|\{[\w:]+\}`[^`]|\(02_two\.md|^%", myst, re.M)
    inside_code = myst.startswith(("```python", "`"))
    assert bool(notebooks.raw_myst(myst)) == bool(is_myst and not inside_code)


def test_local_picture_and_source_travel_inside(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "dot.svg").write_text("<svg/>")
    (tmp_path / "code.py").write_text("def f():\n    return 1\n\n\ndef g():\n    return 2\n")
    figure = "```{figure} dot.svg\n:alt: A dot\n:name: fig-dot\nThe dot.\n```"
    assert converted(tmp_path, figure) == (
        "![A dot](data:image/svg+xml;base64,PHN2Zy8+)\n\n*Fig. 1.2* The dot."
    )
    assert converted(tmp_path, "![A dot](dot.svg){width=50%}").startswith("![A dot](data:")
    shown = converted(tmp_path, "```{literalinclude} ../code.py\n:pyobject: g\n```")
    assert shown == "```python\ndef g():\n    return 2\n```"


def test_links_leave_the_notebook_for_the_site_and_the_repository(tmp_path: Path) -> None:
    assert converted(tmp_path, "[n](notation.md)", "Me/it") == (
        "[n](https://me.github.io/it/book/notation.html)"
    )
    assert converted(tmp_path, "[toc](../_toc.yml)", "Me/it") == (
        "[toc](https://github.com/Me/it/blob/abc/_toc.yml)"
    )
    assert converted(tmp_path, "[toc](../_toc.yml)") == "toc"


# ---- the notebooks -----------------------------------------------------------------------------


def test_notebook_is_clean(tmp_path: Path) -> None:
    book = notebooks.read_book(write_book(tmp_path), "me/it", "abc123")
    paths = notebooks.write_notebooks(book, tmp_path / "out")
    assert [path.name for path in paths] == ["01_one.ipynb", "02_two.ipynb"]
    nb = nbformat.read(paths[0], as_version=4)
    nbformat.validate(nb)
    assert nb.metadata["accelerator"] == "GPU"
    assert nb.metadata["colab"]["gpuType"] == "T4"
    assert nb.metadata["kernelspec"]["name"] == "python3"
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    assert [cell.source for cell in code[1:]] == ["1 + 1", 'print("hidden")', "None"]
    assert code[2].metadata["jupyter"] == {"source_hidden": True}


def test_notebook_brings_the_data_file_that_its_chapter_reads(tmp_path: Path) -> None:
    root = write_book(tmp_path, ONE.replace("1 + 1", 'open("results.json")'))
    (root / "book" / "results.json").write_text('{"seeds": [0]}')
    nb = notebooks.notebook("book/01_one", notebooks.read_book(root))
    assert nb.cells[1].source == '%%writefile results.json\n{"seeds": [0]}'


def test_notebook_reads_a_data_file_of_another_folder_from_beside_it(tmp_path: Path) -> None:
    root = write_book(tmp_path, ONE.replace("1 + 1", 'open("../speed/r-cpu.json")'))
    (root / "speed").mkdir()
    (root / "speed" / "r-cpu.json").write_text("{}")
    nb = notebooks.notebook("book/01_one", notebooks.read_book(root))
    assert nb.cells[1].source == "%%writefile r-cpu.json\n{}"
    assert nb.cells[3].source == 'open("r-cpu.json")'


def test_cell_ids_depend_on_place_only(tmp_path: Path) -> None:
    first = notebooks.notebook("book/01_one", notebooks.read_book(write_book(tmp_path)))
    edited = ONE.replace("1 + 1", "2 + 2")
    second = notebooks.notebook("book/01_one", notebooks.read_book(write_book(tmp_path, edited)))
    other = notebooks.notebook("book/02_two", notebooks.read_book(write_book(tmp_path)))
    assert [cell.id for cell in first.cells] == [cell.id for cell in second.cells]
    assert not {cell.id for cell in first.cells} & {cell.id for cell in other.cells}


def test_gated_solution_folds_with_its_code_cells(tmp_path: Path) -> None:
    text = """\
## Exercises

:::{exercise-start} Try
:label: ex-try
:::
Do it.
:::{exercise-end}
:::

:::{solution-start} ex-try
:class: dropdown
:::
So:

```{code-cell}
assert True
```

because.
:::{solution-end}
:::

## After
"""
    book = notebooks.read_book(write_book(tmp_path, two="# Two\n\n" + text))
    nb = notebooks.notebook("book/02_two", book)
    assert [cell.source for cell in nb.cells[1:]] == [
        "# Two\n\n## Exercises\n\n### Exercise 2.1 (Try)\n\nDo it.",
        "#### Solution to Exercise 2.1\n\nSo:",
        "assert True",
        "because.",
        "## After",
    ]
    heading = nb.cells[2]
    assert heading.metadata["jp-MarkdownHeadingCollapsed"] is True
    assert nb.metadata["colab"]["collapsed_sections"] == [heading.metadata["id"]]

    for tail, folds in (("", True), ("Words that must stay in sight.\n", False)):
        two = "# Two\n\n" + text.replace("## After\n", tail)
        nb = notebooks.notebook("book/02_two", notebooks.read_book(write_book(tmp_path, two=two)))
        assert bool(nb.metadata["colab"]["collapsed_sections"]) == folds


def run_install_cell(tmp_path: Path, slug: str | None, installed: bool) -> tuple[list[str], str]:
    """Run the first cell, with or without advlib in sight: what it installs, what it raises."""
    nb = notebooks.notebook("book/01_one", notebooks.read_book(write_book(tmp_path), slug, "abc"))
    source = TransformerManager().transform_cell(nb.cells[0].source)
    calls: list[str] = []

    class Shell:
        def run_line_magic(self, name: str, line: str) -> None:
            calls.append(f"{name} {line}")

    source = source.replace('"advlib"', '"ast"' if installed else '"surely_not_installed"')
    try:
        exec(compile(source, "install", "exec"), {"get_ipython": Shell})
    except ModuleNotFoundError as error:
        return calls, str(error)
    return calls, ""


def test_install_cell(tmp_path: Path) -> None:
    assert run_install_cell(tmp_path, "me/it", installed=True) == ([], "")
    calls, error = run_install_cell(tmp_path, "me/it", installed=False)
    assert calls == ['pip install -q "advlib @ git+https://github.com/me/it@abc"']
    assert error == ""
    assert run_install_cell(tmp_path, None, installed=True) == ([], "")
    calls, error = run_install_cell(tmp_path, None, installed=False)
    assert calls == []
    assert "pip install" in error


# ---- which repository --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remote", "slug"),
    [
        ("https://github.com/me/my.book.git", "me/my.book"),
        ("https://github.com/me/book", "me/book"),
        ("https://user@github.com/me/book/", "me/book"),
        ("git@github.com:me/book.git", "me/book"),
        ("ssh://git@github.com/me/book.git", "me/book"),
        ("https://example.org/me/book.git", None),
        ("", None),
    ],
)
def test_slug_from_the_remote(remote: str, slug: str | None, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if remote:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", remote], check=True)
    assert notebooks.find_slug(tmp_path, {}) == slug
    assert notebooks.find_slug(tmp_path, {"GITHUB_REPOSITORY": "a/b"}) == "a/b"


def test_no_slug_from_a_repository_around_the_book(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    remote = ["remote", "add", "origin", "https://github.com/me/outer"]
    subprocess.run(["git", "-C", tmp_path, *remote], check=True)
    inner = tmp_path / "book"
    inner.mkdir()
    assert notebooks.find_slug(inner, {}) is None
    assert notebooks.find_commit(inner, {}) == "HEAD"


def test_site_url() -> None:
    assert plain_inline.site_url("Me/book") == "https://me.github.io/book/"
    assert plain_inline.site_url("me/me.github.io") == "https://me.github.io/"
    assert plain_inline.site_url(None) == ""


def test_cache_key_follows_what_chapters_compute_with(tmp_path: Path) -> None:
    (tmp_path / "advlib" / "deep").mkdir(parents=True)
    (tmp_path / "advlib" / "trained").mkdir()
    (tmp_path / "book").mkdir()
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    keys = [execution.cache_key(tmp_path)]
    for name in (
        "advlib/a.py",
        "advlib/deep/b.py",
        "advlib/digits.npz",
        "advlib/trained/a.pt",
        "advlib/trained/index.json",
        "book/results.json",
        "book/reports.json",
        "benchmarks/results/a.json",
    ):
        (tmp_path / name).write_text("1")
        keys.append(execution.cache_key(tmp_path))
    assert execution.cache_key(tmp_path) == keys[-1]
    (tmp_path / "advlib" / "a.py").write_text("2")
    keys.append(execution.cache_key(tmp_path))
    assert len(set(keys)) == len(keys)


# ---- the site ----------------------------------------------------------------------------------


def build(root: Path, slug: str | None) -> subprocess.CompletedProcess[str]:
    """Build the small book with the real configuration and extension, without executing."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"
    config["sphinx"]["local_extensions"]["book_ext"] = str(EXTENSION)
    config["sphinx"]["config"]["html_static_path"] = [str(ROOT / "book" / "_static")]
    config["sphinx"]["config"]["html_favicon"] = str(ROOT / "book" / "_static" / "icon.svg")
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    if slug:
        environment["GITHUB_REPOSITORY"] = slug
    command = [Path(sys.executable).with_name("jupyter-book"), "build", root, "-n", "-W"]
    return subprocess.run(
        [*command, "--keep-going"], env=environment, capture_output=True, text=True, timeout=300
    )


def test_colab_buttons_open_notebooks_that_exist(tmp_path: Path) -> None:
    one = "# One\n\n```{chapter-badges}\n```\n" + ONE.removeprefix("# One\n")
    root = write_book(tmp_path, one)
    site = root / "_build" / "html"

    done = build(root, "some/fork")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"execution_cache_path='{execution.cache_folder(root)}'" in done.stdout
    page = (site / "book" / "01_one.html").read_text()
    link = "https://colab.research.google.com/github/some/fork/blob/gh-pages/notebooks/01_one.ipynb"
    assert page.count(f'href="{link}"') == 2  # the button and the badge
    assert set(re.findall(r'href="(https://colab[^"]*)"', page)) == {link}
    assert 'href="../notebooks/01_one.ipynb"' in page
    assert "https://github.com/some/fork/edit/main/book/01_one.md" in page
    assert 'href="https://github.com/some/fork"' in page
    assert "https://github.com/some/fork/issues/new" in page
    listed = re.findall("<loc>(.*?)</loc>", (site / "sitemap.xml").read_text())
    names = ["01_one", "02_two", "index", "notation"]
    assert sorted(listed) == [f"https://some.github.io/fork/book/{name}.html" for name in names]
    lost = (site / "404.html").read_text()
    assert 'href="/fork/search.html"' in lost
    assert 'href="/fork/_static/book.css' in lost
    assert "colab" not in (site / "book" / "notation.html").read_text()
    assert check_html.check(site) == []
    installs = nbformat.read(site / "notebooks" / "01_one.ipynb", as_version=4).cells[0].source
    assert "github.com/some/fork@" in installs

    (site / "sitemap.xml").unlink()
    done = build(root, None)  # over the old build: nothing of the fork may stay
    assert done.returncode == 0, done.stdout + done.stderr
    for path in [*site.glob("book/*.html"), *site.glob("notebooks/*")]:
        text = path.read_text()
        assert "some/fork" not in text
        assert "colab.research" not in text
    assert 'href="../notebooks/01_one.ipynb"' in (site / "book" / "01_one.html").read_text()
    assert not (site / "sitemap.xml").exists()
    assert 'href="/search.html"' in (site / "404.html").read_text()
    assert check_html.check(site) == []


def test_a_shared_link_is_described_by_the_text_and_formulas_are_drawn_here(
    tmp_path: Path,
) -> None:
    one = "# One\n\n```{chapter-badges}\n```\n\nAbout $x$.\n" + ONE.removeprefix("# One\n")
    root = write_book(tmp_path, one)
    costs = root / "benchmarks" / "results" / "build.json"
    costs.parent.mkdir(parents=True)
    costs.write_text('{"rows": {"book/01_one": {"yardsticks": 2}}}')
    done = build(root, None)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (root / "_build" / "html" / "book" / "01_one.html").read_text()
    assert re.search('og:description" content="(.*?) ', page)[1] == "About"
    assert "Runs in 1 to 3 minutes on two CPU cores." in page
    notebook = (root / "_build" / "html" / "notebooks" / "01_one.ipynb").read_text()
    assert "*Runs in 1 to 3 minutes on two CPU cores.*" in notebook
    script = re.search('src="([^"]*mathjax[^"]*)"', page)[1]
    assert (root / "_build" / "html" / "book" / script).is_file()


def test_images_are_sized_and_those_below_the_first_load_lazily(tmp_path: Path) -> None:
    Image.new("1", (3, 2)).save(tmp_path / "a.png")
    sources = {"a.png": tmp_path / "a.png", "b.svg": tmp_path / "b.svg"}
    html = '<img alt="A" src="../_images/a.png" /><p>a.png</p>'
    sized = 'width="3" height="2" alt="A" src="../_images/a.png" />'
    by_hand = '<img src="c.png" width="5">'
    assert pages.mend(html + by_hand + html + '<img src="b.svg"/>', sources) == (
        f'<img decoding="async" {sized}<p>a.png</p>'
        '<img decoding="async" loading="lazy" src="c.png" width="5">'
        f'<img decoding="async" loading="lazy" {sized}<p>a.png</p>'
        '<img decoding="async" loading="lazy" src="b.svg"/>'
    )


def test_build_fails_on_unknown_myst_and_on_missing_alt_text(tmp_path: Path) -> None:
    root = write_book(tmp_path / "role", ONE + "\n{glue:figure}`x`{mystery}`x`\n")
    done = build(root, None)
    assert done.returncode != 0
    assert "01_one: role {mystery}`x` has no plain Markdown form" in done.stdout + done.stderr

    root = write_book(tmp_path / "alt", ONE + "\n![](dot.svg)\n\n![dot.svg](dot.svg)\n")
    (root / "book" / "dot.svg").write_text("<svg/>")
    done = build(root, None)
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("has no alt text") == 2


def test_check_html_finds_each_fault(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "book").mkdir(parents=True)
    (site / "notebooks").mkdir()
    (site / "notebooks" / "01.ipynb").write_text("{}")
    (site / "notebooks" / "02.ipynb").write_text("{}")
    colab = "https://colab.research.google.com/github/a/b/blob/gh-pages/notebooks/"
    good = f"""<article><h1 id="top">T</h1><img src="x.png" alt="A line">
        <a href="#top">t</a><a href="{colab}01.ipynb">c</a><a href="{colab}02.ipynb">c</a></article>
        <img src="x.png">"""
    page = site / "book" / "01.html"
    (site / "book" / "x.png").write_text("")
    page.write_text(good)
    assert check_html.check(site) == []
    faults = {
        "<pre>Traceback (most recent call last)</pre>": "a traceback",
        '<article><img src="x.png"></article>': "no alt text",
        '<article><img src="x.png" alt="../_images/x.png"></article>': "no alt text",
        '<a href="missing.html">m</a>': "missing file: missing.html",
        '<img src="../gone.png">': "missing file: ../gone.png",
        '<a href="#nowhere">m</a>': "missing place: #nowhere",
        f'<a href="{colab}03.ipynb">c</a>': "Colab link without its file",
    }
    for html, words in faults.items():
        page.write_text(good + html)
        assert [words in fault for fault in check_html.check(site)] == [True], html
    page.write_text(good.replace("02.ipynb", "01.ipynb"))
    assert check_html.check(site) == ["notebook that no Colab link opens: 02.ipynb"]
    page.unlink()
    assert check_html.check(site)


def test_check_html_exit_code(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<a href="missing.html">m</a>')
    command = [sys.executable, EXTENSION / "check_html.py", tmp_path]
    assert subprocess.run(command, capture_output=True).returncode == 1
    (tmp_path / "index.html").write_text("<p>fine</p>")
    assert subprocess.run(command, capture_output=True).returncode == 0


# ---- the collector -----------------------------------------------------------------------------


def run_pytest(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return f"{done.stdout}\nexit {done.returncode}"


def write_pages(root: Path, pages: dict[str, list[str]]) -> None:
    """Pages of these code cells in the small book under `root`."""
    for name, cells in pages.items():
        text = "\n".join(f"```{{code-cell}}\n{cell}\n```\n" for cell in cells)
        (root / "book" / f"{name}.md").write_text(HEADER + "# Page\n\n" + text)


def collected(root: Path) -> Path:
    """The small book under `root`, with the real collector."""
    write_book(root)
    (root / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(ROOT / "book" / "conftest.py", root / "book")
    shutil.copytree(EXTENSION, root / "book" / "_ext")
    return root


def kept(root: Path, name: str, folder: Path) -> nbformat.NotebookNode | None:
    found = execution.find(get_cache(folder), execution.read(root / "book" / f"{name}.md"))
    return found and found[0]


def test_a_page_stops_at_a_failing_cell_and_is_executed_once(tmp_path: Path) -> None:
    root = collected(tmp_path)
    cells = ["import os; assert os.path.exists('01_one.md')", "assert 1 == 2", "x = 1", "y = 2"]
    write_pages(root, {"01_one": cells, "02_two": ["1"], "03_damaged": ["2"]})
    (root / "advlib").mkdir()
    (root / "book" / "page.md").write_text("# No chapter\n\n```{code-cell}\n1 / 0\n```\n")
    said = run_pytest(root, "book", "-v", "-rs")
    assert "book/01_one.md::Cell 0 PASSED" in said
    assert "book/01_one.md::Cell 1 FAILED" in said
    assert "book/01_one.md::Cell 2 SKIPPED" in said
    assert "book/01_one.md::Cell 3 SKIPPED" in said
    assert "Cell 1 of this chapter failed" in said
    assert "book/02_two.md::Cell 0 PASSED" in said
    assert "page.md" not in said
    assert said.endswith("exit 1")

    folder = execution.cache_folder(root)
    assert kept(root, "01_one", folder) is None
    assert list(execution.seconds(root)) == ["book/02_two"]
    assert 0 < execution.seconds(root)["book/02_two"] < 300

    # The next time what failed and what is new is run. What was executed is not, if it is whole.
    (path,) = (p for p in folder.rglob("base.ipynb") if '"2"' in p.read_text())
    path.write_text(path.read_text().replace('"execution_count": 1', '"execution_count": null', 1))
    write_pages(root, {"01_one": cells[:1] + cells[2:], "04_part": ["3", "4"]})
    write_pages(root, {"05_edits": ["open('../advlib/new.py', 'w').close()"]})
    said = run_pytest(root, "book", "-v", "--deselect", "book/04_part.md::Cell 0")
    assert "book/01_one.md::Cell 2 PASSED" in said
    assert "book/02_two.md::Executed before PASSED" in said
    assert "book/03_damaged.md::Executed before FAILED" in said
    assert f"Cell 0 failed or never ran: remove {folder}" in said
    assert "book/04_part.md::Cell 1 PASSED" in said
    assert "book/05_edits.md::Cell 0 PASSED" in said
    assert said.count(" PASSED") == 6
    assert kept(root, "01_one", folder) is not None
    assert kept(root, "04_part", folder) is None
    for found in (folder, execution.cache_folder(root)):  # of which advlib would it be?
        assert kept(root, "05_edits", found) is None


SHOWN = [
    "from IPython.display import HTML, clear_output, display\nimport sys",
    "from matplotlib import pyplot as plt\nplt.plot([1, 2]);",
    "print('a'); display(HTML('<b>c</b>')); print('d'); 1 + 1",
    "print('e', file=sys.stderr)",
    "handle = display(HTML('old'), display_id='it')",
    "handle.update(HTML('new'))",
    "print('gone'); clear_output(); print('stays')",
    "print('gone'); clear_output(wait=True); print('stays')",
]


def test_pages_show_the_same_by_whomever_they_are_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = collected(tmp_path)
    write_pages(root, {"01_one": SHOWN})
    assert run_pytest(root, "book").endswith("exit 0")  # with MPLBACKEND set, as tests set it
    monkeypatch.delenv("MPLBACKEND")
    built = execution.read(root / "book" / "01_one.md")
    assert single_nb_execution(built, str(tmp_path), 300, False).err is None
    ours = kept(root, "01_one", execution.cache_folder(root))
    assert ours.metadata.language_info == built.metadata.language_info
    built.cells = [cell for cell in built.cells if cell.cell_type == "code"]
    for cell, same in zip(ours.cells, built.cells, strict=True):
        assert cell.execution_count == same.execution_count
        assert coalesce_streams(cell.outputs) == coalesce_streams(same.outputs), cell.source


def test_every_page_that_runs_is_collected(tmp_path: Path) -> None:
    root = tmp_path  # where no execution is kept
    shutil.copytree(ROOT / "book", root / "book")
    said = run_pytest(root, "book", "--collect-only", "-q")
    names = [name for name, _ in notebooks.read_toc(ROOT)]
    run = {name: root / f"{name}.md" for name in names if notebooks.is_chapter(root / f"{name}.md")}
    assert len(run) > len(CHAPTERS)
    for name, path in run.items():
        source = path.read_text(encoding="utf8")
        expected = len(re.findall(r"^`{3,}\{code-cell", source, re.M))
        assert len(re.findall(rf"^{name}\.md::Cell \d+$", said, re.M)) == expected, name


def test_the_build_finds_what_nbval_keeps(tmp_path: Path) -> None:
    cache = get_cache(tmp_path)
    for path in filter(notebooks.is_chapter, (ROOT / "book").glob("*.md")):
        built = read_myst_markdown_notebook(path.read_text(encoding="utf8"), path=path)
        keys = [cache.create_hashed_notebook(nb)[1] for nb in (execution.read(path), built)]
        assert keys[0] == keys[1], path.name


# ---- the real chapters -------------------------------------------------------------------------


def test_two_chapters_of_one_notebook_are_refused(tmp_path: Path) -> None:
    root = write_book(tmp_path)
    (root / "appendix").mkdir()
    (root / "appendix" / "01_one.md").write_text(HEADER + TWO, encoding="utf8")
    (root / "_toc.yml").write_text(TOC.replace("book/02_two", "appendix/01_one"), encoding="utf8")
    with pytest.raises(ValueError, match=r"_toc\.yml: 2 chapters would be notebooks/01_one\.ipynb"):
        notebooks.read_book(root)


def test_toc_pages_exist() -> None:
    pages = [name for name, _ in notebooks.read_toc(ROOT)]
    assert len(CHAPTERS) >= 6
    assert [name for name in pages if not (ROOT / f"{name}.md").is_file()] == []


@pytest.fixture(scope="module")
def book():
    return notebooks.read_book(ROOT, "owner/name", "0" * 40)


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_becomes_a_valid_notebook(name: str, book) -> None:
    assert name in book.chapters
    nb = notebooks.notebook(name, book)
    nbformat.validate(nb)
    assert "github.com/owner/name@" in nb.cells[0].source
    for cell in nb.cells:
        if cell.cell_type == "code":
            ast.parse(TransformerManager().transform_cell(cell.source))
        else:
            assert not notebooks.raw_myst(cell.source)


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_has_every_section(name: str) -> None:
    text = (ROOT / f"{name}.md").read_text(encoding="utf8")
    headings = iter(re.findall(r"^## (.+?)\s*$", text, re.M))
    missing = [section for section in SECTIONS if section not in headings]
    assert missing == []  # `in` moves the iterator on, so the order counts too


@pytest.mark.parametrize("name", CHAPTERS)
def test_code_fits_the_width_of_a_page(name: str) -> None:
    source = jupytext.read(ROOT / f"{name}.md", fmt="md:myst")
    lines = [line for c in source.cells if c.cell_type == "code" for line in c.source.split("\n")]
    assert [line for line in lines if len(line) > 78] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_has_three_exercises_with_folded_solutions(name: str) -> None:
    source = jupytext.read(ROOT / f"{name}.md", fmt="md:myst")
    text = "\n\n".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    exercises = re.findall(
        r"^[`:]{3,}\{exercise(?:-start)?\}.*\n(?::(?!label).*\n)*:label: (\S+)", text, re.M
    )
    solutions = re.findall(
        r"^[`:]{3,}\{solution(?:-start)?\} (\S+)\n(?::(?!class).*\n)*:class: .*dropdown", text, re.M
    )
    assert len(exercises) >= 3
    assert sorted(solutions) == sorted(exercises)


# ---- the workflow ------------------------------------------------------------------------------


def test_actions_are_pinned_and_permissions_least() -> None:
    text = (ROOT / ".github" / "workflows" / "book.yml").read_text()
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert [action for action in used if not re.search(r"@[0-9a-f]{40} # v[\d.]+$", action)] == []
    jobs = yaml.safe_load(text)
    assert jobs["permissions"] == {}
    assert jobs["jobs"]["check"]["permissions"] == {"contents": "read"}
    assert jobs["jobs"]["publish"]["permissions"] == {"contents": "write"}
    assert "push" in jobs["jobs"]["publish"]["if"]


def test_the_front_pages_citation_is_that_of_the_citation_file() -> None:
    front = (ROOT / "book" / "index.md").read_text(encoding="utf8")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    entry = dict(re.findall(r"^  (\w+) += \{+(.*?)\}+,?$", front, re.M))
    assert entry == {
        "title": cited["title"],
        "author": cited["authors"][0]["name"],
        "year": cited["date-released"][:4],
        "note": f"Version {cited['version']}",
    }
    assert f'"{cited["version"]}"' in (ROOT / "advlib" / "__init__.py").read_text(encoding="utf8")
