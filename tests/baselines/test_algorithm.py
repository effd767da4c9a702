"""What an algorithm is to the benchmark: found by name or script, one function per name."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from baselines.algorithm import Budget, Recorder, Task, find_algorithm, register
from mf_taxi_env.mdp import Field

SCRIPT = """
from baselines.algorithm import register

@register("mine", label="My algorithm", oracle=True)
def train(task, record):
    ...
"""


def test_built_in_algorithms_are_found_by_name() -> None:
    """An oracle is marked as one; a name that nobody has is answered with those that there are."""
    assert find_algorithm("stay").label == "Stay" and not find_algorithm("stay").oracle
    assert find_algorithm("safe-m3-known").oracle
    with pytest.raises(ValueError, match=r"algorithm must be one of .*'stay'.* got 'nobody'"):
        find_algorithm("nobody")


def test_a_script_adds_an_algorithm(tmp_path: Path) -> None:
    """A third party's file is run where it is named; once more is no conflict. A missing file is named."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    for _ in range(2):
        found = find_algorithm(f"{path}:mine")
    assert (found.name, found.label, found.oracle) == ("mine", "My algorithm", True)
    with pytest.raises(ValueError, match=r"no file '.*other\.py'"):
        find_algorithm(f"{tmp_path / 'other.py'}:mine")


def test_a_script_imports_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Python runs it; its folder is on the path once."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_script.py").write_text("LABEL = 'From beside'\n")
    path = tmp_path / "script.py"
    path.write_text("from beside_the_script import LABEL\n" + SCRIPT.replace('"My algorithm"', "LABEL"))
    for _ in range(2):
        assert find_algorithm(f"{path}:mine").label == "From beside"
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize("helper", ["networks.py", "networks/__init__.py"])
def test_each_script_has_its_own_helpers(helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same name in two folders, whichever comes first on a path that was inherited; what lies elsewhere stays."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "common_to_scripts.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "common")
    for name in ("one", "two"):
        (tmp_path / name / helper).parent.mkdir(parents=True)
        (tmp_path / name / helper).write_text(f"LABEL = 'Of {name}'\n")
        script = f"import common_to_scripts\nfrom networks import LABEL\n{SCRIPT}".replace('"My algorithm"', "LABEL")
        (tmp_path / name / "script.py").write_text(script.replace('"mine"', f'"{name}"').replace("train", name))
    assert find_algorithm(f"{tmp_path / 'one' / 'script.py'}:one").label == "Of one"
    common = sys.modules["common_to_scripts"]
    assert find_algorithm(f"{tmp_path / 'two' / 'script.py'}:two").label == "Of two"
    assert find_algorithm(f"{tmp_path / 'one' / 'script.py'}:one").label == "Of one"
    assert sys.modules.pop("common_to_scripts") is common
    sys.modules.pop("networks")


def test_a_name_belongs_to_one_function() -> None:
    """Two algorithms of one name would share their runs."""

    def other(task: Task, record: Recorder) -> Field:
        raise NotImplementedError

    with pytest.raises(ValueError, match="there is an algorithm 'stay' already"):
        register("stay")(other)


@pytest.mark.parametrize(("steps", "seconds"), [(0, 1.0), (1.5, 1.0), (1, 0.0), (1, math.nan)])
def test_a_budget_is_positive(steps: float, seconds: float) -> None:
    """A run without a budget is a mistake."""
    with pytest.raises(ValueError, match=r"env_steps|seconds"):
        Budget(steps, seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["script.py", "a_module_of_mine"])
def test_what_another_registered_is_not_a_scripts_own(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in algorithm would be recorded as the script's; the message says what there is, and how to name it."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("script.py", "a_module_of_mine.py"):
        (tmp_path / name).write_text(SCRIPT)
    named = str(tmp_path / source) if source.endswith(".py") else source
    for _ in range(2):
        assert find_algorithm(f"{named}:mine").label == "My algorithm"
    with pytest.raises(
        ValueError, match=r"registers \['mine'\]; .* path/to/script\.py:NAME and package\.module:NAME, got '.*:stay'"
    ):
        find_algorithm(f"{named}:stay")
    sys.modules.pop(source, None)


def test_what_a_script_imports_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is run once more, and what it imports is not."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_it.py").write_text(SCRIPT)
    (tmp_path / "script.py").write_text("import beside_it")
    for _ in range(2):
        assert find_algorithm(f"{tmp_path / 'script.py'}:mine").label == "My algorithm"
    assert (
        find_algorithm("baselines.algorithms:stay").name == find_algorithm("baselines.algorithms.classical:stay").name == "stay"
    )
    sys.modules.pop("beside_it")
