"""Configuration of Sphinx, which ``make docs`` runs."""

import pat_mmdet

project = "pat_mmdet"
author = "The pat_mmdet contributors"
project_copyright = author
version = release = pat_mmdet.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["requirements.txt"]

myst_heading_anchors = 3  # made as on GitHub

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have the types, with shapes and units
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"{project} {release}"
