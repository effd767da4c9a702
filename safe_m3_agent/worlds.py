"""What a run file tells of a world, and the world that is rebuilt from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from pathlib import Path
from typing import Any

import torch

from mf_taxi_env import CongestedMotion, FreeMotion, Motion, ParticleMDP, Scenario, SwarmMDP, TaxiMDP, TorusMotion
from mf_taxi_env.checks import plain_number
from mf_taxi_env.safety import (
    Constraint,
    DistanceCap,
    EntropyFloor,
    KeepAway,
    RegionCapacity,
    RegionCoverage,
    SmoothedEntropyFloor,
    WeightedEntropyFloor,
)

SCENARIO_FILE = "scenario.npz"

#: Constraints that a run file can name; others have to be handed in at loading, with their world.
_CONSTRAINTS: dict[str, type[Constraint]] = {
    kind.__name__: kind
    for kind in (
        EntropyFloor, WeightedEntropyFloor, SmoothedEntropyFloor, DistanceCap, KeepAway, RegionCapacity, RegionCoverage,
    )
}  # fmt: skip


def world_facts(mdp: ParticleMDP) -> dict[str, Any]:
    """What a run file tells of a world: equal for equal worlds, unless the world, a motion or a constraint is the user's own.

    Trips of the user's own make a world of the user's own, but one that its digest of them tells from others.

    Args:
        mdp: The world.

    Returns:
        What JSON can hold, as JSON gives it back.
    """
    facts: dict[str, Any] = {
        "kind": "custom",
        "cells": mdp.grid.cells,
        "dimension": mdp.grid.dimension,
        "horizon": mdp.horizon,
        "noise_std": mdp.noise.std,
        "dtype": str(mdp.dtype).removeprefix("torch."),
        "motion": _motion_facts(mdp),
        "constraints": [_constraint_facts(constraint) for constraint in mdp.constraints],
    }
    if isinstance(mdp, TaxiMDP):
        scenario = mdp.scenario
        facts["kind"] = "taxi" if type(mdp) is TaxiMDP and mdp.own_trips is None else "custom"
        facts["scenario"] = {
            "name": scenario.name, "box": list(scenario.box), "cells": scenario.cells, "sha256": scenario.digest,
        }  # fmt: skip
        facts["reward_timing"] = mdp.reward_timing
        if mdp.own_trips is not None:
            own = mdp.own_trips.detach().cpu().contiguous()
            facts["trips"] = {"shape": list(own.shape), "sha256": hashlib.sha256(own.numpy().tobytes()).hexdigest()}
    elif isinstance(mdp, SwarmMDP):
        facts["kind"] = "swarm" if type(mdp) is SwarmMDP else "custom"
        facts |= {"dt": mdp.dt, "max_speed": mdp.max_speed, "density_term": mdp.density_term}
    # As a file gives it back, so that the two compare: JSON knows no tuples.
    restored: dict[str, Any] = json.loads(json.dumps(facts, default=plain_number))
    return restored


def save_world(folder: Path, mdp: ParticleMDP) -> None:
    """Write what :func:`rebuilt_world` needs beside the facts: a city's scenario, and nothing of a swarm."""
    if isinstance(mdp, TaxiMDP):
        mdp.scenario.save(folder / SCENARIO_FILE)


def rebuilt_world(folder: Path, facts: dict[str, Any], device: torch.device | str) -> ParticleMDP:
    """The world that :func:`world_facts` told of.

    Args:
        folder: Where :func:`save_world` wrote.
        facts: What the run file tells.
        device: Device of the world.

    Raises:
        ValueError: If the world, its motion, a constraint or its trips are the user's own, or a file is not readable.
        KeyError: If a fact is missing.
    """
    if "custom" in [facts["kind"], facts["motion"]["name"], *(constraint["kind"] for constraint in facts["constraints"])]:
        raise ValueError(
            "this run's world is, or has a motion, constraint or trips, of the user's own: hand the world in, "
            "load(folder, mdp=...)"
        )
    shared: dict[str, Any] = {
        "horizon": facts["horizon"],
        "constraints": [
            _CONSTRAINTS[constraint["kind"]](**{name: value for name, value in constraint.items() if name != "kind"})
            for constraint in facts["constraints"]
        ],
        "dtype": getattr(torch, facts["dtype"]),
        "device": device,
    }
    if facts["kind"] == "swarm":
        own = {name: facts[name] for name in ("cells", "dt", "max_speed", "density_term")}
        return SwarmMDP(**own, **shared)
    city = TaxiMDP(
        Scenario.load(folder / SCENARIO_FILE), noise_std=facts["noise_std"], reward_timing=facts["reward_timing"], **shared
    )
    if facts["motion"]["name"] == "congested":
        return city.with_motion(CongestedMotion(city.grid, facts["motion"]["alpha"]))
    return city


def _motion_facts(mdp: ParticleMDP) -> dict[str, Any]:
    motion: Motion = mdp.motion
    if type(motion) is FreeMotion and isinstance(mdp, TaxiMDP):
        return {"name": "free"}
    if type(motion) is CongestedMotion and isinstance(mdp, TaxiMDP):
        return {"name": "congested", "alpha": motion.alpha}
    if type(motion) is TorusMotion and isinstance(mdp, SwarmMDP) and motion == TorusMotion(mdp.max_speed, mdp.dt):
        return {"name": "torus"}
    return {"name": "custom"}


def _constraint_facts(constraint: Constraint) -> dict[str, Any]:
    kind, fields = type(constraint).__name__, typing.cast("Any", constraint)
    if kind in _CONSTRAINTS and type(fields) is typing.cast("Any", _CONSTRAINTS[kind]):
        return {"kind": kind, **dataclasses.asdict(fields)}
    return {"kind": "custom"}
