"""The book's toolchain: its notebooks, the Colab links, the collector, the skeleton."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_cache import get_cache
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import read_myst_markdown_notebook
from myst_nb.core.utils import coalesce_streams
from sphinx_exercise.nodes import solution_node

ROOT = Path(__file__).resolve().parents[1]
EXTENSION = ROOT / "book" / "_ext"
sys.path.insert(0, str(EXTENSION))
check_html = importlib.import_module("check_html")
contents = importlib.import_module("contents")
execution = importlib.import_module("execution")
notebooks = importlib.import_module("notebooks")
reading = importlib.import_module("reading")

CHAPTERS = [name for name in contents.read_toc(ROOT) if re.match(r"book/\d", name)]
SECTIONS = """\
What you will learn, Set up, Predict first, The idea, The idea in code, The experiment,
Common mistakes, Quick quiz, Exercises, Key takeaways, What next"""
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
- {caption: One, numbered: 1, chapters: [{file: book/01_one}, {file: book/02_two}]}
- {caption: Two, chapters: [{file: book/notation}]}
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
  figure: {caption: "A {cite:t}`madry2018`", name: fig-line}
---
None
```
"""
TWO = """\
# Two

$$ y = x $$ (eq-two)

:::{exercise} Think
:label: ex-think
:::

```{code-cell}
2
```
"""
EXERCISE = """
:::{exercise-start} TITLE
:label: ex-TITLE
:::
Do it.
:::{exercise-end}
:::

:::{solution-start} ex-TITLE
:class: dropdown
:::
WORDS
CELLS
:::{solution-end}
:::
"""
REFERENCES = r"""
@inproceedings{madry2018,
  author = {M{\k{a}}dry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig},
  title = {Towards {D}eep Learning Models}, year = {2018}, booktitle = {ICLR},
  url = {https://arxiv.org/abs/1706.06083}}
@article{wong2020, author = {Wong, Eric and Rice, Leslie}, title = {Fast}, year = {2020},
  journal = {ICLR}, doi = {10.1000/fast}}
"""
NOTATION = """\
(notation)=
# Notation

```{glossary}
robust
  Not {math}`x`.
```

```{bibliography}
```
"""


def write_book(root, one=ONE, two=TWO, toc=TOC):
    """A small book with the real configuration and extension, which executes nothing."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["execute"]["execute_notebooks"] = "off"
    config["sphinx"]["local_extensions"]["book_ext"] = str(EXTENSION)
    config["sphinx"]["config"]["html_static_path"] = [str(ROOT / "book" / "_static")]
    config["sphinx"]["config"]["html_favicon"] = str(ROOT / "book" / "_static" / "icon.svg")
    files = {"_config.yml": yaml.safe_dump(config), "_toc.yml": toc, "book/dot.svg": "<svg/>"}
    files |= {"book/01_one.md": HEADER + one, "book/02_two.md": HEADER + two}
    files |= {"book/index.md": "# The book\n", "book/notation.md": NOTATION}
    files["book/references.bib"] = REFERENCES
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    return root


def read_notebooks(root):
    """The notebook of each executable page, and its faults."""
    return [(notebooks.notebook(tree, p), p.faults) for tree, p in reading.read_pages(root)]


def exercise(title, words, *cells):
    """An exercise and its solution; a cell may begin with its tags."""
    code = "\n".join(f"```{{code-cell}}\n{cell}\n```" for cell in cells)
    return EXERCISE.replace("TITLE", title).replace("WORDS", words).replace("CELLS", code)


def one_by_one(texts):
    """Chapter one and then these texts, with code between them."""
    return ONE + "".join(f"\n{text}\n\n```{{code-cell}}\n0\n```\n" for text in texts)


SITE = "https://me.github.io/it/book"
MADRY, WONG = "https://arxiv.org/abs/1706.06083", "https://doi.org/10.1000/fast"
FORMS = {
    "{cite:t}`madry2018` say": f"Mądry *et al.* [[2018]({MADRY})] say",
    "{cite:p}`wong2020`": f"[[Wong and Rice, 2020]({WONG})]",
    "{ref}`idea`": "The idea",
    "{ref}`split\n<idea>`": "split",
    "{ref}`notation`": f"[Notation]({SITE}/notation.html#notation)",
    "{term}`robust`": f"[robust]({SITE}/notation.html#term-robust)",
    "{numref}`fig-line`": "Fig. 1.1",
    "{ref}`ex-think`": "[Exercise 2.1](02_two.ipynb)",
    "{eq}`eq-two`": "[(2.1)](02_two.ipynb)",
    "{doc}`that <02_two>`": "[that](02_two.ipynb)",
    "[next](02_two.md)": "[next](02_two.ipynb)",
    "[`code` too](https://example.org/a.md)": "[`code` too](https://example.org/a.md)",
    "{math}`x^2`": "$x^2$",
    "`{ref} stays`, ``a`b``": "`{ref} stays`, `` a`b ``",
    r"$\{a\}_i$, \$5, 2\*3\*4, a_b, \_c, \<b>": r"$\{a\}_i$, \$5, 2\*3\*4, a_b, \_c, \<b>",
    "a\n% a remark\nb": "a\n\nb",
    ":::{note}\nBe *calm*.\n:::": "> **Note**\n>\n> Be *calm*.",
    "::::{warning}\n:::{note}\nInner.\n:::\n::::": (
        "> **Warning**\n>\n> > **Note**\n> >\n> > Inner."
    ),
    ":::{admonition} A `b`\nText.\n:::": "> **A `b`**\n>\n> Text.",
    ":::{admonition} A `b`\n:class: tip dropdown\nText.\n:::": (
        "<details>\n<summary>A <code>b</code></summary>\n\nText.\n\n</details>"
    ),
    "- item\n  :::{note}\n  In.\n  :::\n- **b**": "- item\n\n  > **Note**\n  >\n  > In.\n- **b**",
    "3. c\n4. d": "3. c\n4. d",
    "$$\na = b\n$$": "$$\na = b\n$$",
    "$$ a = b $$ (eq-a)": "$$\na = b \\tag{1.1}\n$$",
    "```{math}\n:label: eq-m\na\n```": "$$\na \\tag{1.2}\n$$",
    ":::{exercise} Easy\n:label: e\nDo it.\n:::": "### Exercise 1.1 (Easy)\n\nDo it.",
    "```{quiz} Why\nno {math}`x`?\n- [ ] Too\n  big.\n\n  No.\n- [x] Odd.\n\n  {ref}`idea`.\n```": (
        "**Why no $x$?**\n\n- **A.** Too big.\n- **B.** Odd.\n\n<details>\n"
        "<summary>Answers</summary>\n\n- **A.** ✗ No.\n- **B.** ✓ Right. The idea.\n\n</details>"
    ),
    "```python\n{ref}`kept`\n```": "```python\n{ref}`kept`\n```",
    "```{table} Four numbers\n| a |\n|---|\n| {eq}`eq-two` \\| |\n```": (
        "*Table 1.1* Four numbers\n\n| a |\n| --- |\n| [(2.1)](02_two.ipynb) \\| |"
    ),
    "```{figure} dot.svg\n:alt: A dot\nThe dot.\n```": (
        "![A dot](data:image/svg+xml;base64,PHN2Zy8+)\n\n*Fig. 1.2* The dot."
    ),
}


def test_everything_that_has_a_form_gets_it_in_a_clean_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "Me/it")
    nb, faults = read_notebooks(write_book(tmp_path, one_by_one(list(FORMS))))[0]
    assert faults == []
    texts = [cell.source for cell in nb.cells if cell.cell_type == "markdown"]
    assert texts[:2] == ["# One\n\n## The idea", f"*Fig. 1.1* A Mądry *et al.* [[2018]({MADRY})]"]
    assert texts[2:] == list(FORMS.values())
    assert (nb.metadata["accelerator"], nb.metadata["colab"]["gpuType"]) == ("GPU", "T4")
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.source for cell in code[1:4]] == ["1 + 1", 'print("hidden")', "None"]
    assert code[2].metadata["jupyter"] == {"source_hidden": True}


WARNED = {
    "```{mermaid}\na\n```": "mermaid",
    "{mystery}`x`": "mystery",
    "{cite:p}`nobody1999`": "nobody1999",
    "{ref}`nowhere`": "nowhere",
    "[text](07_missing.md)": "07_missing.md",
    "![alt](missing.png)": "missing.png",
    "```{quiz} One?\n- [x] Yes.\n\n  Too few.\n```": "'One?': needs a question, two to six options",
    "```{quiz} None?\n- [ ] No.\n\n  No.\n- [ ] No.\n\n  No.\n```": "'None?': needs",
    "```{quiz} Two?\n- [x] No.\n\n  No.\n- [x] No.\n\n  No.\n```": "'Two?': needs",
    "```{quiz}\n- [x] No question.\n\n  No.\n- [ ] No.\n\n  No.\n```": "'': needs",
    "```{quiz} Mute?\n- [x] No.\n- [ ] No.\n\n  No.\n```": "'Mute?': an option lacks",
    "```{quiz} Link?\n- [x] {ref}`idea`\n\n  No.\n- [ ] No.\n\n  No.\n```": "can't hold a link",
}
REFUSED = {
    "::: plain\nwords\n:::": "container 'words'",
    "```{quiz} Backticks in `the` first line?\n- [x] No.": "Text '```{quiz}",
    "> quote": "block_quote 'quote'",
    "Term\n: its meaning": "definition_list 'Term",
    "\\begin{align*}\na &= b\n\\end{align*}": "math_block",
    "```{code-cell}\n:tags: [remove-cell]\n0\n```": "a code cell is missing",
}


def test_what_has_no_form_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"01_one\.md") as warned:
        read_notebooks(write_book(tmp_path / "a", one_by_one(list(WARNED))))
    assert [words for words in WARNED.values() if words not in str(warned.value)] == []
    (_, faults), (_, others) = read_notebooks(write_book(tmp_path / "b", one_by_one(list(REFUSED))))
    assert others == []
    for words, fault in zip(REFUSED.values(), faults, strict=True):
        assert fault.startswith(f"book/01_one: {words}")


def test_notebook_brings_the_data_files_that_its_chapter_reads(tmp_path):
    one = ONE.replace("1 + 1", "open('r.json'), open(\"../speed/s-cpu.json\")")
    root, text = write_book(tmp_path, one), '{"of": "a/t.json"}'
    (root / "speed").mkdir()
    for name in ("book/r.json", "speed/s-cpu.json"):
        (root / name).write_text(text)
    sources = [cell.source for cell in read_notebooks(root)[0][0].cells]
    assert sources[1:3] == [f"%%writefile {name}\n{text}" for name in ("r.json", "s-cpu.json")]
    assert sources[4] == "open('r.json'), open(\"s-cpu.json\")"


def test_solution_folds_with_its_cells_unless_more_would_go_with_it(tmp_path):
    one = "# One\n" + exercise("Try", "So:", "assert True") + "\nWords that must stay in sight.\n"
    two = "# Two\n" + exercise("Do", "So:", "assert True") + "\n## After\n"
    (unfolded, _), (nb, _) = read_notebooks(write_book(tmp_path, one, two))
    assert [cell.source for cell in nb.cells[1:]] == [
        "# Two\n\n## Exercise 2.1 (Do)\n\nDo it.",
        "### Solution to Exercise 2.1\n\nSo:",
        "assert True",
        "## After",
    ]
    assert nb.cells[2].metadata["jp-MarkdownHeadingCollapsed"] is True
    assert nb.metadata["colab"]["collapsed_sections"] == [nb.cells[2].metadata["id"]]
    assert unfolded.metadata["colab"]["collapsed_sections"] == []
    ids, others = ([cell.id for cell in made.cells] for made in (unfolded, nb))
    assert len({*ids, *others}) == len(ids) + len(others)
    last = two.replace("\n## After\n", "")  # now the solution ends the page
    again, ended = read_notebooks(write_book(tmp_path, one.replace("Do it.", "Do that."), last))
    assert [cell.id for cell in again[0].cells] == ids  # by place only
    assert len(ended[0].metadata["colab"]["collapsed_sections"]) == 1


@pytest.mark.parametrize("slug", ["me/it", None])
@pytest.mark.parametrize("installed", [True, False])
def test_install_cell(slug, installed):
    [(_, source, _)] = notebooks.opening(contents.Book(ROOT, [], slug, "abc"), [])
    source = TransformerManager().transform_cell(source)
    source = source.replace('"advlib"', '"ast"' if installed else '"surely_not_installed"')
    calls = []
    shell = SimpleNamespace(run_line_magic=lambda *words: calls.append(" ".join(words)))
    missing = slug is None and not installed
    with pytest.raises(ModuleNotFoundError, match="pip install") if missing else nullcontext():
        exec(compile(source, "install", "exec"), {"get_ipython": lambda: shell})
    install = ['pip install -q "advlib @ git+https://github.com/me/it@abc"']
    assert calls == (install if slug and not installed else [])


REMOTES = {
    "https://github.com/me/my.book.git": "me/my.book",
    "https://user@github.com/me/book/": "me/book",
    "git@github.com:me/book.git": "me/book",
    "ssh://git@github.com/me/book.git": "me/book",
    "https://example.org/me/book.git": None,
    "": None,
}


@pytest.mark.parametrize("remote", REMOTES)
def test_slug_from_the_remote(remote, tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if remote:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", remote], check=True)
    assert contents.find_slug(tmp_path, {}) == REMOTES[remote]
    assert contents.find_slug(tmp_path, {"GITHUB_REPOSITORY": "a/b"}) == "a/b"


def test_no_repository_from_one_around_the_book(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    remote = ["remote", "add", "origin", "https://github.com/me/outer"]
    subprocess.run(["git", "-C", tmp_path, *remote], check=True)
    book = contents.read_book(write_book(tmp_path / "book"), {})
    assert (book.slug, book.commit) == (None, "HEAD")


def test_addresses():
    assert contents.site_url("me/me.github.io") == "https://me.github.io/"
    assert contents.Book(ROOT, []).address("book/a", "b") == "../book/a.html#b"


def test_cache_key_follows_what_chapters_compute_with(tmp_path):
    files = "advlib/a.py advlib/deep/b.py advlib/digits.npz advlib/book/trained/a.pt "
    files += "advlib/book/trained/index.json book/results.json book/reports.json "
    files += "benchmarks/results/a.json"
    keys = [execution.cache_key(tmp_path)]
    for name, text in [*((name, "1") for name in files.split()), ("advlib/a.py", "2")]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        keys.append(execution.cache_key(tmp_path))
    assert execution.cache_key(tmp_path) == keys[-1]
    assert len(set(keys)) == len(keys)


def build(root, slug, *options):
    """What building the book says, and how it ends."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    environment |= {"GITHUB_REPOSITORY": slug} if slug else {}
    command = [Path(sys.executable).with_name("jupyter-book"), "build", root, "-n", "-W"]
    done = subprocess.run(
        [*command, "--keep-going", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return f"{done.stdout}{done.stderr}\nexit {done.returncode}"


def test_site_and_notebooks_know_their_repository(tmp_path):
    one = ONE.replace("# One\n", "# One\n\n```{chapter-badges}\n```\n\nAbout $x$.\n", 1)
    root = write_book(tmp_path, one)
    front = "# The book\n\n```{chapter-badges}\n[Begin](01_one.md)\n```\n\n```{code-cell}\n1\n```\n"
    (root / "book" / "index.md").write_text(HEADER + front)
    costs = root / "benchmarks" / "results" / "build.json"
    costs.parent.mkdir(parents=True)
    costs.write_text('{"rows": {"book/01_one": {"yardsticks": 2}}}')
    site = root / "_build" / "html"

    said = build(root, "some/fork")
    assert said.endswith("exit 0"), said
    assert f"execution_cache_path='{execution.cache_folder(root)}'" in said
    page = (site / "book" / "01_one.html").read_text()
    link = "https://colab.research.google.com/github/some/fork/blob/gh-pages/notebooks/01_one.ipynb"
    assert page.count(f'href="{link}"') == 2  # the button and the badge
    assert set(re.findall(r'href="(https://colab[^"]*)"', page)) == {link}
    for part in (
        'href="../notebooks/01_one.ipynb"',
        "https://github.com/some/fork/edit/main/book/01_one.md",
        'href="https://github.com/some/fork"',
        "https://github.com/some/fork/issues/new",
        "Runs in 1 to 3 minutes on two CPU cores.",
        'og:description" content="About ',  # and not the running time
    ):
        assert part in page
    listed = re.findall("<loc>(.*?)</loc>", (site / "sitemap.xml").read_text())
    names = ["01_one", "02_two", "index", "notation"]
    assert sorted(listed) == [f"https://some.github.io/fork/book/{name}.html" for name in names]
    lost = (site / "404.html").read_text()
    assert re.search('href="/fork/_static/book.css.*href="/fork/search.html"', lost, re.S)
    assert "colab" not in (site / "book" / "notation.html").read_text()
    made = nbformat.read(site / "notebooks" / "01_one.ipynb", as_version=4).cells
    assert "github.com/some/fork@" in made[0].source
    assert made[1].source.startswith("# One\n\nRuns in 1 to 3 minutes on two CPU cores.\n\nAbout")
    buttons = re.search('front-buttons">(.*?)</p>', (site / "book" / "index.html").read_text())[1]
    assert re.findall('href="([^"]*)"', buttons) == [link.replace("01_one", "index"), "01_one.html"]
    made = nbformat.read(site / "notebooks" / "index.ipynb", as_version=4).cells
    assert made[1].source == "# The book\n\n[Begin](01_one.ipynb)"
    script = re.search('src="([^"]*mathjax[^"]*)"', page)[1]
    assert (site / "book" / script).is_file()  # formulas are drawn without a network
    assert check_html.check(site) == []

    (site / "sitemap.xml").unlink()
    said = build(root, None)  # over the old build: nothing of the fork may stay
    assert said.endswith("exit 0"), said
    for path in [*site.glob("book/*.html"), *site.glob("notebooks/*")]:
        assert not re.search("some/fork|colab.research", path.read_text())
    assert 'href="../notebooks/01_one.ipynb"' in (site / "book" / "01_one.html").read_text()
    assert not (site / "sitemap.xml").exists()
    assert 'href="/search.html"' in (site / "404.html").read_text()
    assert check_html.check(site) == []


def test_the_whole_book_becomes_one_page_to_print(tmp_path):
    said = build(write_book(tmp_path), None, "--builder=custom", "--custom-builder=singlehtml")
    assert said.endswith("exit 0"), said
    page = tmp_path / "_build" / "singlehtml" / "book" / "index.html"
    assert "hidden" in page.read_text()  # a folded cell


def test_build_fails_on_all_that_has_no_form_and_on_missing_alt_texts(tmp_path):
    pictures = "\n![](dot.svg)\n\n![dot.svg](dot.svg)\n"
    said = build(write_book(tmp_path, ONE + pictures + "\n> a\n", TWO + "\n> b\n"), None)
    assert said.count("has no alt text") == 2
    for fault in ("01_one: block_quote 'a' has no plain", "02_two: block_quote 'b' has no plain"):
        assert fault in said
    assert not said.endswith("exit 0")


def test_check_html_finds_each_fault(tmp_path):
    colab = "https://colab.research.google.com/github/a/b/blob/gh-pages/notebooks/"
    good = f"""<article><h1 id="top">T</h1><img src="x.png" alt="A line">
        <a href="#top">t</a><a href="{colab}01.ipynb">c</a><a href="{colab}02.ipynb">c</a></article>
        <img src="x.png">"""
    for name in ("book/x.png", "notebooks/01.ipynb", "notebooks/02.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    page, command = tmp_path / "book" / "01.html", [sys.executable, EXTENSION / "check_html.py"]
    page.write_text(good)
    assert check_html.check(tmp_path) == []
    assert subprocess.run([*command, tmp_path], capture_output=True).returncode == 0
    faults = {
        "<pre>Traceback (most recent call last)</pre>": "a traceback",
        "<pre>&lt;Figure size 500x320 with 1 Axes&gt;</pre>": "in place of its picture",
        '<a href="missing.html">m</a>': "missing file: missing.html",
        '<img src="../gone.png">': "missing file: ../gone.png",
        '<a href="#nowhere">m</a>': "missing place: #nowhere",
        f'<a href="{colab}03.ipynb">c</a>': "Colab link without its file",
    }
    for html, words in faults.items():
        page.write_text(good + html)
        assert [words in fault for fault in check_html.check(tmp_path)] == [True], html
    page.unlink()
    assert subprocess.run([*command, tmp_path], capture_output=True).returncode == 1


def run_pytest(folder, *options):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return f"{done.stdout}\nexit {done.returncode}"


def write_pages(root, pages):
    """Pages of these code cells in the small book under `root`."""
    for name, cells in pages.items():
        text = "\n".join(f"```{{code-cell}}\n{cell}\n```\n" for cell in cells)
        (root / "book" / f"{name}.md").write_text(HEADER + "# Page\n\n" + text)


def collected(root):
    """The small book under `root`, with the real collector."""
    write_book(root)
    (root / "pytest.ini").write_text("[pytest]\n")
    shutil.copy(ROOT / "book" / "conftest.py", root / "book")
    shutil.copytree(EXTENSION, root / "book" / "_ext")
    return root


def kept(root, name, folder):
    found = execution.find(get_cache(folder), execution.read(root / "book" / f"{name}.md"))
    return found and found[0]


def test_a_page_stops_at_a_failing_cell_and_is_executed_once(tmp_path):
    root = collected(tmp_path)
    cells = ["import os; assert os.path.exists('01_one.md')", "assert 1 == 2", "x = 1", "y = 2"]
    write_pages(root, {"01_one": cells, "02_two": ["1"], "03_damaged": ["2"]})
    (root / "advlib").mkdir()
    (root / "book" / "page.md").write_text("# No chapter\n\n```{code-cell}\n1 / 0\n```\n")
    said = run_pytest(root, "book", "-v", "-rs")
    for part in (
        "01_one.md::Cell 0 PASSED",
        "01_one.md::Cell 1 FAILED",
        "01_one.md::Cell 2 SKIPPED",
        "01_one.md::Cell 3 SKIPPED",
        "Cell 1 of this chapter failed",
        "02_two.md::Cell 0 PASSED",
    ):
        assert part in said
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
    for part in (
        "01_one.md::Cell 2 PASSED",
        "02_two.md::Executed before PASSED",
        "03_damaged.md::Executed before FAILED",
        f"Cell 0 failed or never ran: remove {folder}",
        "04_part.md::Cell 1 PASSED",
        "05_edits.md::Cell 0 PASSED",
    ):
        assert part in said
    assert said.count(" PASSED") == 6
    assert kept(root, "01_one", folder) is not None
    assert kept(root, "04_part", folder) is None
    for found in (folder, execution.cache_folder(root)):  # of which advlib would it be?
        assert kept(root, "05_edits", found) is None


SHOWN = """\
from IPython.display import HTML, clear_output, display; import sys
from matplotlib import pyplot as plt; plt.plot([1, 2]);
print('a'); display(HTML('<b>c</b>')); print('d'); 1 + 1
print('e', file=sys.stderr)
handle = display(HTML('old'), display_id='it')
handle.update(HTML('new'))
print('gone'); clear_output(); print('stays')
print('gone'); clear_output(wait=True); print('stays')"""


def test_pages_show_the_same_by_whomever_they_are_executed(tmp_path, monkeypatch):
    root = collected(tmp_path)
    write_pages(root, {"01_one": SHOWN.split("\n")})
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


def test_every_page_that_runs_is_collected(tmp_path):
    root = tmp_path  # where no execution is kept
    shutil.copytree(ROOT / "book", root / "book")
    said = run_pytest(root, "book", "--collect-only", "-q")
    run = {name: root / f"{name}.md" for name in contents.read_book(ROOT, {}).chapters}
    assert len(run) > len(CHAPTERS)
    for name, path in run.items():
        source = path.read_text(encoding="utf8")
        expected = len(re.findall(r"^`{3,}\{code-cell", source, re.M))
        assert len(re.findall(rf"^{name}\.md::Cell \d+$", said, re.M)) == expected, name


def test_the_build_finds_what_nbval_keeps(tmp_path):
    cache = get_cache(tmp_path)
    for path in filter(contents.is_chapter, (ROOT / "book").glob("*.md")):
        built = read_myst_markdown_notebook(path.read_text(encoding="utf8"), path=path)
        keys = [cache.create_hashed_notebook(nb)[1] for nb in (execution.read(path), built)]
        assert keys[0] == keys[1], path.name


def test_every_page_that_runs_becomes_a_valid_notebook():
    read = reading.read_pages(ROOT)
    assert len(read) > len(CHAPTERS) >= 6
    for tree, page in read:
        nb = notebooks.notebook(tree, page)
        assert page.faults == []
        for cell in nb.cells:
            if cell.cell_type == "code":
                ast.parse(TransformerManager().transform_cell(cell.source))
        if page.name in CHAPTERS:  # its solutions fold here and there
            solutions = list(tree.findall(solution_node))
            text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
            number = int(re.search(r"\d+", page.name)[0])
            found = re.findall(rf"^### Exercise {number}\.(\d+)", text, re.M)
            assert found == [str(i + 1) for i in range(max(3, len(solutions)))]
            assert all("dropdown" in solution["classes"] for solution in solutions)
            assert len(nb.metadata["colab"]["collapsed_sections"]) == len(solutions)


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_has_every_section_in_order_and_code_that_fits_a_page(name):
    text = (ROOT / f"{name}.md").read_text(encoding="utf8")
    headings = iter(re.findall(r"^## (.+?)\s*$", text, re.M))
    assert [name for name in re.split(r",\s", SECTIONS) if name not in headings] == []
    cells = jupytext.reads(text, fmt="md:myst").cells
    lines = [line for c in cells if c.cell_type == "code" for line in c.source.split("\n")]
    assert [line for line in lines if len(line) > 78] == []


def test_only_publishing_may_write():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    assert jobs["permissions"] == {}
    assert jobs["jobs"]["check"]["permissions"] == {"contents": "read"}
    assert jobs["jobs"]["publish"]["permissions"] == {"contents": "write"}
    assert "push" in jobs["jobs"]["publish"]["if"]


def test_the_front_pages_citation_is_that_of_the_citation_file():
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
