"""Documentation: Markdown pages, the reference from docstrings, one page per environment from its class docstring."""

import inspect
import pkgutil
import re
from pathlib import Path

import gymnasium as gym
from docutils.nodes import Element, TextElement
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

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
#: A reference to nothing is a warning.
nitpicky = True
nitpick_ignore_regex = [
    # Other libraries have pages of their own, which a build without a network cannot look at; nor their names alone.
    (r"py:.*", r"(abc|collections|os|pathlib|gymnasium|matplotlib|numpy|pettingzoo|scipy|sparse|stable_baselines3|torch)\..*"),
    (r"py:class", "Path|Tensor|Env|WrapperObsType|WrapperActType|VecEnvWrapper|BaseAlgorithm"),
    (r"py:class", r"baselines\.belief\.Policy"),  # a TypeVar
    # Names for a few strings, which autodoc takes for classes.
    (r"py:class", "RewardTiming|Resolution|RenderMode|Backend"),
    # What two public classes share.
    (r"py:class", r".*\._\w+"),
]


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


def find_defined(app: Sphinx, env: BuildEnvironment, node: Element, text: TextElement) -> Element | None:
    """What a name stands for that is documented under another one: a re-export, or the one longer name that ends in it."""
    if node.get("refdomain") != "py":
        return None
    target, domain = node["reftarget"], env.domains.python_domain
    thing, last = imported(target), target.rpartition(".")[2]
    known = [name for name, entry in domain.objects.items() if not entry.aliased and entry.objtype != "module"]
    found = [name for name in known if name.rpartition(".")[2] == last]
    found = [name for name in found if (name.endswith(f".{target}") if thing is None else imported(name) is thing)]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], found[0], node, text)


def imported(name: str) -> object:
    """The object of a dotted name, or None."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None


def keep_prose(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Attributes and ``Returns`` begin with prose here, never with a type, for which Napoleon takes what is before a colon."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"
    for i, line in enumerate(lines[:-1]):
        if line in ("Returns:", "Yields:"):
            lines[i + 1] = re.sub(r"^(\s*)", r"\1: ", lines[i + 1])


def setup(app: Sphinx) -> None:
    """Write the generated pages before Sphinx looks for sources."""
    app.connect("builder-inited", write_environment_pages)
    app.connect("missing-reference", find_defined)
    app.connect("autodoc-process-docstring", keep_prose, priority=400)  # before Napoleon
