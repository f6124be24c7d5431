"""The documentation as a site: `pip install '.[docs]' && sphinx-build -W docs build/site`."""

from __future__ import annotations

import builder

project = "laion6m"
author = "the laion6m builder's authors"
copyright = "Apache-2.0"
version = release = builder.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["README.md"]  # GitHub's index of this folder; the site has index.md

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["mmengine"]
autodoc_default_options = {"members": True, "show-inheritance": False}

html_theme = "furo"
html_title = f"laion6m {version}"
html_show_copyright = False
# Links out of docs/ (to examples/, README.md …) lead to files of the repository, which a site does not have.
# Examples leave things out with an ellipsis, which is no Python.
suppress_warnings = ["myst.xref_missing", "ref.python", "misc.highlighting_failure"]
