"""The figures of arXiv 2306.17052, Section 5 and Appendix D, from recorded runs; and which runs are missing for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safe_m3_agent.config import Config
from safe_m3_agent.figures.city_maps import fleets, trips_and_flows
from safe_m3_agent.figures.curves import learning, trade_off
from safe_m3_agent.figures.drawing import Drawing, save_drawing
from safe_m3_agent.figures.judged import judged
from safe_m3_agent.figures.recipes import train_command
from safe_m3_agent.figures.recorded import Group, read_groups
from safe_m3_agent.figures.style import LINES

FigureName = Literal["2", "3a", "3b", "4", "5a", "5b"]
#: Representative agents that the paper compares.
REPRESENTATIVE_AGENTS = (1, 5, 10)
#: Entropy floor that the paper trains a policy at, to judge it at a higher one.
LOOSE_FLOOR = 0.5
#: Most fleets on the maps of figure 2.
MOST_FLEETS = 5


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


def paper_figures(
    folders: Sequence[Path],
    out: Path,
    *,
    only: Sequence[FigureName] = (),
    judge_floor: float = 0.85,
    formats: Sequence[str] = ("png",),
) -> str:
    """Draw every figure for which the runs suffice, and say which runs are missing for the others.

    Args:
        folders: Folders of runs, at least one.
        out: Folder of the figures, made where it is missing.
        only: Figures to draw; all where empty.
        judge_floor: Floor of figure 5a, a share of ``log K`` in (0, 1).
        formats: Among ``png``, ``pdf``, ``svg``, at least one.

    Returns:
        What was drawn from which runs, and the commands that make those missing, as text.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ValueError: If an argument is out of range, a run is not readable, or two folders hold the same run.
    """
    if not folders:
        raise ValueError("runs must name at least one folder of a run, got none")
    unknown = [name for name in only if name not in get_args(FigureName)]
    if unknown:
        raise ValueError(f"only must name figures among {get_args(FigureName)}, got {unknown}")
    if not 0.0 < judge_floor < 1.0:
        raise ValueError(f"judge_floor must lie between 0 and 1 (a share of log K), got {judge_floor!r}")
    if not formats:
        raise ValueError("formats must name at least one of png, pdf, svg, got none")
    groups = read_groups(folders)
    planners: dict[FigureName, Callable[[Group], Plan]] = {
        "2": lambda base: _fleets(base, groups),
        "3a": lambda base: _known_and_unknown(base, groups),
        "3b": lambda base: _safe_and_unsafe(base, groups),
        "4": _trips,
        "5a": lambda base: _floors(base, groups, judge_floor),
        "5b": lambda base: _representatives(base, groups),
    }
    out.mkdir(parents=True, exist_ok=True)
    # Of equally good pictures the one of an agent that learns safely is the paper's.
    bases = sorted(groups, key=lambda group: (not group.config.constrained, group.known))
    report: list[str] = []
    for name, plan_of in planners.items():
        if not only or name in only:
            plan = max(map(plan_of, bases), key=lambda plan: plan.rank)
            report += _carry_out(name, plan, out, formats)
    return "\n".join(report)


def _carry_out(name: str, plan: Plan, out: Path, formats: Sequence[str]) -> list[str]:
    if plan.suffices:
        paths = save_drawing(plan.draw(), out, f"figure_{name}", formats)
        lines = [f"figure {name}: {', '.join(map(str, paths))}"]
        lines += [f"  {label}: {', '.join(str(run.folder) for run in group.runs)}" for label, group in plan.curves]
    else:
        lines = [f"figure {name}: not drawn, runs are missing"]
    for what, command in plan.missing:
        lines += [f"  missing{' for a fuller picture' if plan.suffices else ''}: {what}", f"    {command}"]
    if plan.missing and (more := _more_seeds(plan)):
        lines.append(more)
    return lines


def _more_seeds(plan: Plan) -> str:
    seeds = max((group.seeds for _, group in plan.curves), key=len, default=[])[1:]
    if not seeds:
        return ""
    return f"    and the same with --seed {', '.join(map(str, seeds))}, each with an --out of its own"


# -- one function per figure: what it would show, starting from one group of runs -----------------------------------------


def _fleets(base: Group, groups: Sequence[Group]) -> Plan:
    others = [group for group in groups if group is not base and group.city == base.city]
    # What the constraint does is the figure's subject: agents without it come first.
    same_city = [base, *sorted(others, key=lambda group: group.config.constrained)][:MOST_FLEETS]
    curves = [(_name(group, same_city), group) for group in same_city]
    found = {(group.config.constrained, group.known) for group in same_city}
    missing = [
        Missing(what, train_command(base, **_changes(base, wanted)))
        for what, wanted in (
            ("Safe-M3-UCRL, motion unknown", {"constrained": True, "model": _learned(base)}),
            ("M3-UCRL (no constraint), motion unknown", {"constrained": False, "model": _learned(base)}),
        )
        if (wanted["constrained"], False) not in found
    ]
    return Plan(curves, missing, True, lambda: fleets(curves, f"{_where(base)}: demand, and where policies take the fleet"))


def _known_and_unknown(base: Group, groups: Sequence[Group]) -> Plan:
    model = _learned(base)
    agents = base.config.representative_agents
    wanted = [
        (f"motion unknown, {agents} representative taxi{'s' * (agents > 1)}", {"constrained": True, "model": model}),
        ("motion known", {"constrained": True, "model": "known"}),
    ]
    return _compared(
        base, groups, wanted, 2, lambda curves: learning(curves, f"{_what(base)}: learning, known and unknown motion")
    )


def _safe_and_unsafe(base: Group, groups: Sequence[Group]) -> Plan:
    wanted = [
        ("Safe-M3-UCRL", {"constrained": True}),
        ("M3-UCRL (no constraint)", {"constrained": False}),
    ]
    return _compared(
        base,
        groups,
        wanted,
        2,
        lambda curves: trade_off(curves, f"{_what(base, tell_motion=True)}: closeness to demand against safety"),
    )


def _trips(base: Group) -> Plan:
    run = base.middle
    title = f"{_where(base)}: where trips end, and where the policy sends taxis"
    return Plan([(f"policy of seed {run.seed}", base)], [], True, lambda: trips_and_flows(run, title))


def _floors(base: Group, groups: Sequence[Group], judge: float) -> Plan:
    alike = ("entropy_floor", "constrained")
    family = [group for group in groups if group.settings(*alike) == base.settings(*alike) and group.config.constrained]
    floors = sorted({group.floor for group in family if group.floor is not None})
    if len(floors) < 2 and base.floor is not None:
        floors = sorted(
            {*floors, LOOSE_FLOOR, judge} if not floors else {*floors, LOOSE_FLOOR if floors[0] >= judge else judge}
        )
    wanted = [
        (f"trained at {100 * floor:g} %", {"entropy_floor": floor, "constrained": True}) for floor in floors[: len(LINES)]
    ]
    title = f"{_where(base, tell_motion=True)}: policies trained at different entropy floors, judged at {100 * judge:g} %"
    plan = _compared(base, groups, wanted, 2, lambda curves: judged(curves, judge, title))
    if base.floor is None:
        return plan._replace(
            missing=[Missing("runs whose only constraint is an entropy floor", "safe-m3 train --entropy-floor ...")]
        )
    return plan


def _representatives(base: Group, groups: Sequence[Group]) -> Plan:
    model = _learned(base)
    alike = base.settings("representative_agents", "learning")
    present = {
        group.config.representative_agents for group in groups if group.settings("representative_agents", "learning") == alike
    }
    counts = sorted({*REPRESENTATIVE_AGENTS, *present})[: len(LINES)]
    wanted = [
        (
            f"{count} representative taxi{'s' * (count > 1)}",
            {"representative_agents": count, "constrained": True, "model": model},
        )
        for count in counts
    ]
    title = f"{_what(base)}: more representative taxis, faster learning?"
    return _compared(base, groups, wanted, 2, lambda curves: learning(curves, title, with_doubt=True))


def _compared(
    base: Group,
    groups: Sequence[Group],
    wanted: Sequence[tuple[str, dict[str, Any]]],
    least: int,
    draw: Callable[[list[tuple[str, Group]]], Drawing],
) -> Plan:
    """Curves that are like ``base`` but for some settings each; what is not there is missing."""
    curves, missing = [], []
    for label, settings in wanted:
        group = _find(base, groups, settings)
        if group is None:
            missing.append(Missing(label, train_command(base, **_changes(base, settings))))
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


def _changes(base: Group, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if _setting(base, name) != value}


def _learned(base: Group) -> str:
    return Config().model if base.known else base.config.model


# -- names ----------------------------------------------------------------------------------------------------------------


def _name(group: Group, among: Sequence[Group]) -> str:
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


def _where(base: Group, *, tell_motion: bool = False) -> str:
    cells = base.world.grid.cells
    return f"{base.world.scenario.name}, {cells} x {cells} cells" + ", motion known" * (tell_motion and base.known)


def _what(base: Group, *, tell_motion: bool = False) -> str:
    where = _where(base, tell_motion=tell_motion)
    return where if base.floor is None else f"{where}, entropy floor {100 * base.floor:g} %"
