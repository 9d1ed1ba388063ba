"""{quiz}: a multiple-choice question that answers in the page, by `<details>`, without a script."""

import re

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Quiz(SphinxDirective):
    """A question with its options.

    The body may begin with more of the question; then comes a list whose items begin with
    `[x]` (the right one) or `[ ]`, followed by a blank line and an indented paragraph.
    """

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The question, and for each option its words and what is to be said of them."""
        start, *items = re.split(r"^- \[([ x])\] ", "\n".join(self.content), flags=re.M)
        question = " ".join([*self.arguments, *start.split()])
        if not question or not 2 <= len(items) // 2 <= 6 or items[::2].count("x") != 1:
            raise self.error(
                f"quiz {question!r}: needs a question, two to six options, one of them right"
            )
        group = nodes.make_id(f"quiz-{self.env.docname}-{self.env.new_serialno('quiz')}")
        box = nodes.container(classes=["quiz"])
        box += nodes.paragraph("", "", *self.parse_inline(question)[0], classes=["quiz-question"])
        for right, item in zip(items[::2], items[1::2], strict=True):
            words, _, feedback = (" ".join(part.split()) for part in item.partition("\n\n"))
            if not words or not feedback:
                raise self.error(f"quiz {question!r}: an option lacks its words or its feedback")
            if re.search(r"\{(?!math)[\w:]+\}`|\]\(", words):
                raise self.error(f"quiz {question!r}: an option is a button and can't hold a link")
            kind, mark = ("right", "✓ Right.") if right == "x" else ("wrong", "✗ Not this one.")
            tag = f'<details class="quiz-option {kind}" name="{group}"><summary>'
            mark_and_space = [nodes.strong("", mark, classes=[kind]), nodes.Text(" ")]
            box += nodes.raw("", tag, format="html")
            box += nodes.inline("", "", *self.parse_inline(words)[0])
            box += nodes.raw("", "</summary>", format="html")
            box += nodes.paragraph("", "", *mark_and_space, *self.parse_inline(feedback)[0])
            box += nodes.raw("", "</details>", format="html")
        return [box]
