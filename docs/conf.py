"""Documentation: Markdown pages, the reference from docstrings, one page per environment from its class docstring."""

import inspect
import re
from pathlib import Path

import gymnasium as gym
from sphinx.application import Sphinx

import mf_taxi_env

project = "safe-m3-taxi"
author = "The safe-m3-taxi developers"
release = mf_taxi_env.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = project
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def write_environment_pages(app: Sphinx) -> None:
    """A page for every environment that this package registers, so that a new one needs no one to remember it."""
    folder = Path(app.srcdir) / "environments"
    folder.mkdir(exist_ok=True)
    for spec in gym.registry.values():
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith("mf_taxi_env."):
            text = inspect.getdoc(gym.envs.registration.load_env_creator(spec.entry_point)) or ""
            # A doctest inside Markdown has to be fenced, or its prompts become quotes.
            text = re.sub(r"(?m)((?:^(?:>>>|\.\.\.) .*\n)(?:^\S.*\n)*)", r"```python\n\1```\n", text)
            (folder / f"{spec.id}.md").write_text(f"# {spec.id}\n\n{text}\n")


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for sources."""
    app.connect("builder-inited", write_environment_pages)
