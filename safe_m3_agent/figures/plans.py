"""What a figure would show of some runs: which of them are alike but for a setting, and which are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from safe_m3_agent.config import Config
from safe_m3_agent.figures.drawing import Drawing
from safe_m3_agent.figures.recipes import train_command
from safe_m3_agent.figures.recorded import Group


class Missing(NamedTuple):
    """A run that a figure lacks."""

    what: str
    command: str


class Plan(NamedTuple):
    """What a figure would show of some runs."""

    curves: list[tuple[str, Group]]
    missing: list[Missing]
    suffices: bool
    draw: Callable[[], Drawing]

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Better plans are larger: drawable, complete, with more runs."""
        return self.suffices, -len(self.missing), sum(len(group.runs) for _, group in self.curves)


def compared(
    base: Group,
    groups: Sequence[Group],
    wanted: Sequence[tuple[str, dict[str, Any]]],
    least: int,
    draw: Callable[[list[tuple[str, Group]]], Drawing],
) -> Plan:
    """Curves that are like ``base`` but for some settings each; what is not there is missing.

    Args:
        base: Where to start from.
        groups: All groups there are.
        wanted: Labels of the curves, and the settings by which each differs from ``base``.
        least: Curves without which there is no picture.
        draw: Makes the picture from the curves.
    """
    curves, missing = [], []
    for label, settings in wanted:
        group = _find(base, groups, settings)
        if group is None:
            missing.append(Missing(label, train_command(base, **changes(base, settings))))
        else:
            curves.append((label, group))
    return Plan(curves, missing, len(curves) >= least, lambda: draw(curves))


def _find(base: Group, groups: Sequence[Group], settings: dict[str, Any]) -> Group | None:
    """The group with these settings that is otherwise like ``base``: itself, if it has them."""
    # A known motion leaves the settings of learning without meaning; between two learners they matter.
    switches = (settings.get("model", base.config.model) == "known") != base.known
    without = (*settings, "learning") if switches else tuple(settings)
    like = base.settings(*without)
    for group in (base, *groups):
        if all(_setting(group, name) == value for name, value in settings.items()) and group.settings(*without) == like:
            return group
    return None


def _setting(group: Group, name: str) -> object:
    return group.floor if name == "entropy_floor" else getattr(group.config, name)


def changes(base: Group, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that ``base`` does not have."""
    return {name: value for name, value in settings.items() if _setting(base, name) != value}


def learned(base: Group) -> str:
    """The model of an agent that is otherwise like ``base`` and has to learn."""
    return Config().model if base.known else base.config.model


# -- names ----------------------------------------------------------------------------------------------------------------


def name_among(group: Group, among: Sequence[Group]) -> str:
    """What sets a group apart from others, in words."""

    def parts(one: Group) -> list[str]:
        agents = one.config.representative_agents
        return [
            "Safe-M3-UCRL" if one.config.constrained else "M3-UCRL",
            "motion known" if one.known else "motion unknown",
            "trips unknown" if one.config.learn_trips else "",
            "no constraint"
            if not one.config.constrained
            else ""
            if one.floor is None
            else f"floor\u00a0{100 * one.floor:g}\u00a0%",
            "" if one.known else f"{agents} rep. taxi{'s' * (agents > 1)}",
            one.config.planner,
        ]

    mine = parts(group)
    told = {0, 1} if group.known else {0}
    differing = [part for i, part in enumerate(mine) if part and (i in told or len({parts(one)[i] for one in among}) > 1)]
    if sum(parts(one) == mine for one in among) > 1:
        differing.append(group.runs[0].folder.name)
    return ", ".join(differing)


def where(base: Group, *, tell_motion: bool = False) -> str:
    """City and grid, in words."""
    cells = base.world.grid.cells
    return f"{base.world.scenario.name}, {cells} x {cells} cells" + ", motion known" * (tell_motion and base.known)


def what_is_kept(base: Group, *, tell_motion: bool = False) -> str:
    """City, grid and entropy floor, in words."""
    place = where(base, tell_motion=tell_motion)
    return place if base.floor is None else f"{place}, entropy floor {100 * base.floor:g} %"
