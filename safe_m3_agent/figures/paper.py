"""The figures of arXiv 2306.17052, Section 5 and Appendix D, from recorded runs; and which runs are missing for them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from safe_m3_agent.figures.city_maps import fleets, trips_and_flows
from safe_m3_agent.figures.curves import learning, trade_off
from safe_m3_agent.figures.drawing import save_drawing
from safe_m3_agent.figures.finite_fleets import FleetCurve, along_the_episode, common_sizes, fleet_sizes
from safe_m3_agent.figures.fleet_sheets import fleet_map
from safe_m3_agent.figures.judged import judged
from safe_m3_agent.figures.plans import Missing, Plan, changes, compared, learned, name_among, what_is_kept, where
from safe_m3_agent.figures.recipes import train_command
from safe_m3_agent.figures.recorded import Group, read_groups
from safe_m3_agent.figures.style import LINES

FigureName = Literal["2", "3a", "3b", "4", "5a", "5b", "6a", "6b", "7"]
#: Representative agents that the paper compares.
REPRESENTATIVE_AGENTS = (1, 5, 10)
#: Entropy floor that the paper trains a policy at, to judge it at a higher one.
LOOSE_FLOOR = 0.5
#: Fleet sizes that the paper goes through.
FLEET_SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
#: Most fleets on the maps of figure 2.
MOST_FLEETS = 5


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
        "6a": lambda base: _fleet_sizes(base, groups),
        "6b": _taxis_on_the_map,
        "7": _finite_and_infinite,
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
    if any(command.startswith("safe-m3 train") for _, command in plan.missing) and (more := _more_seeds(plan)):
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
    curves = [(name_among(group, same_city), group) for group in same_city]
    found = {(group.config.constrained, group.known) for group in same_city}
    missing = [
        Missing(what, train_command(base, **changes(base, wanted)))
        for what, wanted in (
            ("Safe-M3-UCRL, motion unknown", {"constrained": True, "model": learned(base)}),
            ("M3-UCRL (no constraint), motion unknown", {"constrained": False, "model": learned(base)}),
        )
        if (wanted["constrained"], False) not in found
    ]
    title, left_out = f"{where(base)}: demand, and where policies take the fleet", 1 + len(others) - len(curves)
    return Plan(curves, missing, True, lambda: fleets(curves, title, left_out))


def _known_and_unknown(base: Group, groups: Sequence[Group]) -> Plan:
    model = learned(base)
    agents = base.config.representative_agents
    wanted = [
        (f"motion unknown, {agents} representative taxi{'s' * (agents > 1)}", {"constrained": True, "model": model}),
        ("motion known", {"constrained": True, "model": "known"}),
    ]
    return compared(
        base, groups, wanted, 2, lambda curves: learning(curves, f"{what_is_kept(base)}: learning, known and unknown motion")
    )


def _safe_and_unsafe(base: Group, groups: Sequence[Group]) -> Plan:
    wanted = [
        ("Safe-M3-UCRL", {"constrained": True}),
        ("M3-UCRL (no constraint)", {"constrained": False}),
    ]
    return compared(
        base,
        groups,
        wanted,
        2,
        lambda curves: trade_off(curves, f"{what_is_kept(base, tell_motion=True)}: closeness to demand against safety"),
    )


def _trips(base: Group) -> Plan:
    run = base.middle
    title = f"{where(base)}: where trips end, and where the policy sends taxis"
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
    title = f"{where(base, tell_motion=True)}: policies trained at different entropy floors, judged at {100 * judge:g} %"
    plan = compared(base, groups, wanted, 2, lambda curves: judged(curves, judge, title))
    if base.floor is None:
        return plan._replace(
            missing=[Missing("runs whose only constraint is an entropy floor", "safe-m3 train --entropy-floor ...")]
        )
    return plan


def _representatives(base: Group, groups: Sequence[Group]) -> Plan:
    model = learned(base)
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
    title = f"{what_is_kept(base)}: more representative taxis, faster learning?"
    return compared(base, groups, wanted, 2, lambda curves: learning(curves, title, with_doubt=True))


# -- finite fleets: these need the table that `safe-m3 fleet` leaves in a run's folder ---------------------------------------


def _fleet_sizes(base: Group, groups: Sequence[Group]) -> Plan:
    plan = _known_and_unknown(base, groups)
    curves = [(label, group) for label, group in plan.curves if common_sizes([run.fleets for run in group.runs])]
    title = f"{what_is_kept(base)}: from few taxis to the mean field"
    missing = [*plan.missing, *(one for _, group in plan.curves for one in _not_evaluated(group))]
    for _, group in plan.curves:
        if all(run.fleets for run in group.runs) and not common_sizes([run.fleets for run in group.runs]):
            missing.append(_to_evaluate([str(run.folder) for run in group.runs]))  # each has sizes of its own
    return Plan(curves, missing, bool(curves), lambda: fleet_sizes([_fleet_curve(*curve) for curve in curves], title))


def _taxis_on_the_map(base: Group) -> Plan:
    run, missing = base.middle, _not_evaluated(base)
    return Plan([(f"policy of seed {run.seed}", base)], missing, not missing, lambda: fleet_map(run.subject, run.fleets))


def _finite_and_infinite(base: Group) -> Plan:
    missing = _not_evaluated(base)
    title = f"{what_is_kept(base, tell_motion=True)}: infinite and finite fleets"
    curve = (f"policy of seed {base.middle.seed}", base)
    return Plan([curve], missing, not missing, lambda: along_the_episode(_fleet_curve(*curve), title))


def _fleet_curve(label: str, group: Group) -> FleetCurve:
    return FleetCurve(label, [(run.subject, run.fleets) for run in group.runs])


def _not_evaluated(group: Group) -> list[Missing]:
    folders = [str(run.folder) for run in group.runs if not run.fleets]
    return [_to_evaluate(folders)] if folders else []


def _to_evaluate(folders: Sequence[str]) -> Missing:
    command = shlex.join(["safe-m3", "fleet", *folders, "--taxis", *map(str, FLEET_SIZES), "--runs", "100"])
    return Missing(f"finite fleets of {', '.join(folders)}", command)
