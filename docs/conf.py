"""How Sphinx builds the site: Markdown by MyST, docstrings by autodoc, and what code says by ``generated.py``."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).resolve().parent
PAGES = {
    "../README.md": "tour.md",
    "../CHANGELOG.md": "changelog.md",
    "../benchmarks/README.md": "benchmarks.md",
    "decisions": "decisions/index.md",
}
"""What stands for texts of other folders, and for folders, on the site."""

sys.path.insert(0, str(HERE))
logging.getLogger("apache_beam").setLevel(logging.WARNING)  # it tells of extras that are not there

import generated  # noqa: E402

import scenemill  # noqa: E402

project = "scenemill"
author = "the authors of scenemill"
release = scenemill.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"scenemill {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}
html_show_sphinx = False
highlight_language = "none"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
python_display_short_literal_types = True
napoleon_custom_sections = [("Source", "returns_style")]


class Generated(SphinxDirective):
    """A page's text from ``generated.py``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Its nodes."""
        return _parsed(self, generated.PAGES[self.arguments[0]]())


class Outside(SphinxDirective):
    """A text of another folder, named as seen from the root, without its title; its links lead where they led."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Its nodes."""
        path = HERE.parent / self.arguments[0]
        self.env.note_dependency(str(path))
        return _parsed(self, from_docs(path.read_text().partition("\n")[2], path.parent))


def from_docs(text: str, folder: Path) -> str:
    """A text with its links as seen from ``docs``.

    Args:
        text: Markdown.
        folder: where its links start.
    """
    return re.sub(r"\]\((?!https?:|#)([^)#]*)", lambda link: f"]({_seen(folder / link[1])}", text)


def _seen(path: Path) -> str:
    seen = os.path.relpath(path, HERE)
    return PAGES.get(seen, seen)


def _parsed(directive: SphinxDirective, text: str) -> list[nodes.Node]:
    held = nodes.Element()
    held.document = directive.state.document
    directive.state.nested_parse(StringList(text.splitlines(), "generated"), directive.content_offset, held, match_titles=True)
    return list(held.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("generated", Generated)
    app.add_directive("outside", Outside)
    return {"parallel_read_safe": True}
