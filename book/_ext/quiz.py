"""{quiz}: a multiple-choice question that answers in the page, without a script or a server.

Each option is a `<details>` that unfolds what is to be said about it; the browser lets one of a
question be open at a time, and works it by keyboard.
"""

from typing import Any

from docutils import nodes
from plain_markdown import read_quiz
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class quiz_option(nodes.General, nodes.Element):
    """An option with its feedback."""


class quiz_choice(nodes.General, nodes.TextElement):
    """The words of an option: what is to be clicked."""


class Quiz(SphinxDirective):
    """The question, then a list of options; see `plain_markdown.read_quiz`."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """One group of the question and its options."""
        try:
            question, options = read_quiz(" ".join(self.arguments), "\n".join(self.content))
        except ValueError as fault:
            raise self.error(str(fault)) from fault
        group = nodes.make_id(f"quiz-{self.env.docname}-{self.env.new_serialno('quiz')}")
        box = nodes.container(classes=["quiz"])
        box += nodes.paragraph("", "", *self.parse_inline(question)[0], classes=["quiz-question"])
        for right, words, feedback in options:
            verdict = "right" if right else "wrong"
            option = quiz_option(classes=["quiz-option", verdict], group=group)
            option += quiz_choice("", "", *self.parse_inline(words)[0])
            mark = nodes.strong("", "✓ Right. " if right else "✗ Not this one. ")
            option += nodes.paragraph("", "", mark, *self.parse_inline(feedback)[0])
            box += option
        return [box]


def visit_option(translator: Any, node: nodes.Element) -> None:
    translator.body.append(translator.starttag(node, "details", name=node["group"]))


def depart_option(translator: Any, node: nodes.Element) -> None:
    translator.body.append("</details>\n")


def visit_choice(translator: Any, node: nodes.Element) -> None:
    translator.body.append(translator.starttag(node, "summary", ""))


def depart_choice(translator: Any, node: nodes.Element) -> None:
    translator.body.append("</summary>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive and how its nodes are written."""
    app.add_directive("quiz", Quiz)
    for node, visitors in (
        (quiz_option, (visit_option, depart_option)),
        (quiz_choice, (visit_choice, depart_choice)),
    ):
        app.add_node(node, html=visitors, singlehtml=visitors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
