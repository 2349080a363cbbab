"""Settings of the documentation; build it with `sphinx-build -W docs docs/_build`."""

from importlib import metadata

project = "ergodax"
author = "The ergodax authors"
copyright = author
try:
    release = metadata.version("ergodax")
except metadata.PackageNotFoundError:
    release = "0+source"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

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
exclude_patterns = ["_build"]
