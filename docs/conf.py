"""Settings of the documentation; build it with `sphinx-build -W docs docs/_build`."""

import re
import shutil
from importlib import metadata
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "ergodax"
author = "The ergodax authors"
copyright = author
try:
    release = metadata.version("ergodax")
except metadata.PackageNotFoundError:
    release = "0+source"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
nb_execution_mode = "off"  # notebooks hold their output

# Docstrings write code between single backquotes, and say shapes in words.
default_role = "code"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autoclass_content = "both"
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False

html_theme = "furo"
html_title = "ergodax"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]
exclude_patterns = ["_build"]

_NAME = re.compile(r"(?:ex\.|ergodax\.)?([A-Za-z_][\w.]*?)(?:\(.*\))?", re.DOTALL)


def _render(self, node, as_block: bool) -> None:
    """Formulas as MathML, which browsers show without a script from the network."""
    self.body.append(tex2mathml(node.astext(), as_block=as_block))
    raise nodes.SkipNode


def _copy_notebooks(app) -> None:
    """Notebooks stand beside this folder; pages have to lie in it."""
    folder = Path(app.srcdir, "notebooks")
    folder.mkdir(exist_ok=True)
    for notebook in sorted(Path(app.srcdir).parent.glob("notebooks/*.ipynb")):
        shutil.copyfile(notebook, folder / notebook.name)


def _link_names(app, doctree, docname) -> None:
    """Links what is written as code and is a public name, with or without arguments."""
    domain = app.env.get_domain("py")
    for literal in list(doctree.findall(nodes.literal)):
        found = _NAME.fullmatch(literal.astext())
        name = found and f"ergodax.{found[1]}"
        entry = domain.objects.get(name)
        parents = (nodes.reference, nodes.title)
        inside = any(isinstance(literal.parent, kind) for kind in parents)
        if entry is None or entry.objtype == "module" or inside:
            continue
        target = app.builder.get_relative_uri(docname, entry.docname)
        link = nodes.reference("", "", internal=True, refuri=f"{target}#{entry.node_id}")
        literal.replace_self(link)
        link += literal


def setup(app) -> None:
    """Adds what Sphinx does not have."""
    app.add_html_math_renderer(
        "mathml",
        (lambda self, node: _render(self, node, as_block=False), None),
        (lambda self, node: _render(self, node, as_block=True), None),
    )
    app.connect("builder-inited", _copy_notebooks)
    app.connect("doctree-resolved", _link_names)
