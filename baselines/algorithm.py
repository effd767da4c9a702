"""What an algorithm is to the benchmark: a function that is given a task and, while it learns, shows how far it has come."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from mf_taxi_env import TaxiMDP
from mf_taxi_env.checks import whole_number
from mf_taxi_env.mdp import Field


@dataclass(frozen=True)
class Budget:
    """How long a run may learn: until one of the two is used up.

    Attributes:
        env_steps: Steps of the true lifted MDP, at least 1; an episode of a city has 12. A planner's steps in a model of its
            own do not count.
        seconds: Wall clock of learning, positive; evaluation does not count.
    """

    env_steps: int
    seconds: float

    def __post_init__(self) -> None:
        whole_number("env_steps", self.env_steps, least=1)
        if not self.seconds > 0:
            raise ValueError(f"seconds must be a positive number, got {self.seconds!r}")


@dataclass(frozen=True)
class Task:
    """What an algorithm is to do.

    Attributes:
        mdp: The true world. Its rewards are of the distribution that an action causes. An algorithm that is no oracle may
            read what the operator of a fleet knows (demand, trips, constraints, horizon) and act; ``mdp.motion`` is not to be
            read, but passed on to simulators.
        seed: Whatever is random in the run comes from it.
        budget: How long it may learn.
        folder: Of the algorithm alone, and there already: a run that was killed finds in it what it left, and is taken to go on
            from that.
        device: Where tensors live.
    """

    mdp: TaxiMDP
    seed: int
    budget: Budget
    folder: Path
    device: torch.device


class Recorder(Protocol):
    """Where an algorithm shows how far it has come."""

    def __call__(self, policy: Field, *, env_steps: int, episodes: int, violated: int) -> bool:
        """Measure a policy in the true world and add a row to the run's learning curve.

        Where the curve has rows of more steps, from before the run was killed, the first record after the kill drops them, and
        replaces the last of as many. An algorithm that begins from scratch then should record at its start, with 0 steps and
        an empty folder: else rows, and the time, of what was lost stay to its account.

        Args:
            policy: What the algorithm would do if it ended now, without exploration.
            env_steps: Steps that the true world has made for the algorithm so far.
            episodes: Episodes that it has executed there.
            violated: Those of them with a violated constraint at some step.

        Returns:
            Whether the budget is left; otherwise the algorithm is to return.
        """
        ...


#: Learns a task, and returns the policy to be judged.
Train = Callable[[Task, Recorder], Field]


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of the benchmark.

    Attributes:
        name: What it is asked for by.
        train: Learns a task.
        label: What tables and figures call it.
        oracle: Whether it is given the true motion, which no operator knows.
        settings: What its numbers depend on, a dataclass for instance, whose ``repr`` tells versions apart.
    """

    name: str
    train: Train
    label: str
    oracle: bool = False
    settings: object = None


_ALGORITHMS: dict[str, Algorithm] = {}
#: Names that scripts and modules have registered, by where those are.
_ADDED: dict[str, set[str]] = {}
#: Modules and packages that scripts have imported from beside them, by name: the folder of the script.
_BESIDE: dict[str, Path] = {}


def register(name: str, *, label: str | None = None, oracle: bool = False, settings: object = None) -> Callable[[Train], Train]:
    """Add a function to the benchmark's algorithms.

    Args:
        name: What it is asked for by: ``python -m baselines run --algorithms NAME``.
        label: What tables and figures call it; default the name.
        oracle: Whether it reads the true motion.
        settings: What its numbers depend on, with a ``repr`` that says all of it: a run does not go on under others.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: If another function has the name already.
    """

    def add(train: Train) -> Train:
        known = _ALGORITHMS.get(name)
        if known is not None and (known.train.__module__, known.train.__qualname__) != (train.__module__, train.__qualname__):
            raise ValueError(f"there is an algorithm {name!r} already, {known.train.__module__}.{known.train.__qualname__}")
        _ALGORITHMS[name] = Algorithm(name, train, label or name, oracle, settings)
        return train

    return add


def algorithms() -> dict[str, Algorithm]:
    """All algorithms that are registered, by name: the built-in ones, and those of modules imported so far."""
    importlib.import_module("baselines.algorithms")
    return dict(_ALGORITHMS)


def find_algorithm(name: str) -> Algorithm:
    """An algorithm by its name, or by where it is registered.

    Args:
        name: ``"stay"``; or ``"path/to/script.py:mine"`` or ``"package.module:mine"``, which imports script or module first.
            A script's folder is put first on ``sys.path``, and what scripts in other folders imported from beside them is
            forgotten: each has helpers of its own, also of the same names.

    Raises:
        ValueError: If there is no such file, no algorithm of that name, or none that script or module registers.
    """
    source, _, short = name.rpartition(":")
    own = _added_by(source) if source else algorithms().keys()
    if short not in own:
        known = f"{source} registers {sorted(own)}" if source else f"algorithm must be one of {sorted(own)}"
        raise ValueError(f"{known}; allowed are such a name, path/to/script.py:NAME and package.module:NAME, got {name!r}")
    return algorithms()[short]


def _added_by(source: str) -> Set[str]:
    """The names that a script or module registers, itself or by what it imports: another's would be recorded as its own."""
    before, where = algorithms(), source
    if source.endswith(".py"):
        where = str(Path(source).absolute())
        _run_script(Path(source))
    else:
        importlib.import_module(source)
    # What was imported before is not run again: a module's are told by where they are from, others were noted the first time.
    own = _ADDED.setdefault(where, set())
    for name, one in algorithms().items():
        if before.get(name) is not one or f"{one.train.__module__}.".startswith(f"{source}."):
            own.add(name)
    return own & algorithms().keys()


def _run_script(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"algorithm: there is no file {str(path)!r}")
    module = f"_algorithm_{path.stem}"
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None  # it is a .py file
    assert spec.loader is not None
    folder = path.parent.absolute()
    _forget_helpers(besides=folder)
    # As when Python runs it, it may import what lies beside it; a process inherits the path of the one that has started it.
    sys.path[:] = [str(folder), *(place for place in sys.path if place != str(folder))]
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded  # where dataclasses and pickle look for what is defined there
    before = set(sys.modules)
    spec.loader.exec_module(loaded)
    _BESIDE.update(dict.fromkeys((name for name in sys.modules.keys() - before if _is_beside(name, folder)), folder))


def _forget_helpers(besides: Path) -> None:
    """Make Python import anew what scripts in other folders than this one have imported from beside them."""
    others = {name for name, folder in _BESIDE.items() if folder != besides}
    for name in [name for name in sys.modules if name.partition(".")[0] in others]:
        del sys.modules[name]
    for name in others:
        del _BESIDE[name]


def _is_beside(name: str, folder: Path) -> bool:
    """Whether a module is a file, or a package, directly in a folder: an environment may be installed below it."""
    spec = getattr(sys.modules[name], "__spec__", None)  # not all that is there is a module
    if spec is None:
        return False
    return str(folder / f"{name}.py") == spec.origin or str(folder / name) in (spec.submodule_search_locations or ())
