"""Checkpoints: whole or not at all, refused when they do not fit, and nothing in them is ever executed."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import safe_m3_agent
from mf_taxi_env import (
    CongestedMotion,
    Constraint,
    DistanceCap,
    EntropyFloor,
    FreeMotion,
    Grid,
    KeepAway,
    RegionCapacity,
    RegionCoverage,
    Scenario,
    SmoothedEntropyFloor,
    TaxiMDP,
    WeightedEntropyFloor,
    load_scenario,
    safety,
)
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.barrier import BarrierConfig
from safe_m3_agent.checkpoint import (
    CHECKPOINT_FILE,
    FORMAT,
    FORMAT_VERSION,
    RUN_FILE,
    load_checkpoint,
    save_checkpoint,
)
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.run import RunFolder
from safe_m3_agent.worlds import SCENARIO_FILE

CPU = torch.device("cpu")


class ShortMotion:
    """A motion of the user's own."""

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return (positions + 0.7 * actions).clamp(0, 1)


class HalvedMotion(FreeMotion):
    """A motion of the user's own, made from a built-in one."""

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return super().__call__(positions, mu, 0.5 * actions)


class OwnFloor(EntropyFloor):
    """A constraint of the user's own, made from a built-in one."""

    def margin(self, mu: Tensor) -> Tensor:
        return super().margin(mu) + 0.1


@pytest.fixture
def agent(world: TaxiMDP, tiny: Config) -> SafeM3UCRL:
    """After two episodes."""
    agent = SafeM3UCRL(world, tiny, seed=3)
    agent.learn(2)
    return agent


@pytest.fixture
def saved(agent: SafeM3UCRL, tmp_path: Path) -> Path:
    """Its folder."""
    return agent.save(tmp_path / "run")


def files(folder: Path) -> set[str]:
    """Names of all files, hidden ones included."""
    return {path.name for path in folder.iterdir()}


def test_tensors_and_facts_survive(tmp_path: Path) -> None:
    """Every tensor comes back bit for bit, of any type and layout, and facts with their NaNs."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.rand(3, 4, generator=generator).T,
        "double": torch.rand(2, generator=generator, dtype=torch.float64).requires_grad_(),
        "bytes": generator.get_state(),
        "none": torch.zeros(0, 5),
    }
    save_checkpoint(tmp_path / "c", tensors, {"a": [1, math.nan, 0.1 + 0.2], "b": {"c": "d"}})
    loaded, facts = load_checkpoint(tmp_path / "c", CPU)
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert facts["a"][0] == 1 and math.isnan(facts["a"][1]) and facts["a"][2] == 0.1 + 0.2 and facts["b"] == {"c": "d"}
    assert files(tmp_path) == {"c"}


def test_a_saved_folder_holds_three_files(saved: Path) -> None:
    """Settings, scenario and checkpoint; no temporary files."""
    assert files(saved) == {RUN_FILE, SCENARIO_FILE, CHECKPOINT_FILE}


def test_numbers_may_be_numpys(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """Settings out of ``np.arange`` and the like are saved, and are the same run as Python's own."""
    theirs = replace(
        tiny, representative_agents=np.int64(4), beta=np.float32(2.5), barrier=BarrierConfig(final=np.float32(0.125))
    )
    agent = SafeM3UCRL(world, theirs, seed=np.int64(3))  # type: ignore[arg-type]
    agent.learn(1)
    agent.save(tmp_path)
    same = replace(tiny, representative_agents=4, beta=2.5, barrier=BarrierConfig(final=0.125))
    SafeM3UCRL(world, same, seed=3).check_folder(tmp_path / "empty")
    resumed = SafeM3UCRL.load(tmp_path)
    assert resumed.config == same and resumed.seed == 3
    assert resumed.save(tmp_path) == tmp_path
    assert resumed.history == agent.history  # not np.float64(2.5) here and 2.5 there
    with pytest.raises(ValueError, match=r"seed must be an integer >= 0, got 1\.5"):
        SafeM3UCRL(world, same, seed=1.5)  # type: ignore[arg-type]


def test_numbers_of_a_world_may_be_numpys(tiny: Config, tmp_path: Path) -> None:
    """Noise, floor and congestion, too: the world that comes back is this one to the last bit."""
    city = load_scenario("shenzhen", cells=5)
    world = TaxiMDP(
        city, horizon=2, noise_std=np.float32(0.1), constraints=[EntropyFloor(np.float32(0.8))], reward_timing="next",
        motion=CongestedMotion(Grid(5), np.float32(0.05)),
    )  # fmt: skip
    agent = SafeM3UCRL(world, tiny, seed=3)
    agent.learn(1)
    again = SafeM3UCRL.load(agent.save(tmp_path))
    assert again.mdp.noise.std == world.noise.std and type(world.noise.std) is float
    assert again.learn(1) == agent.learn(1)
    assert type(BarrierConfig(initial=np.float32(0.3)).initial) is float


def test_an_agent_can_be_saved_before_its_first_episode(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """Empty stores and an empty history are no special case."""
    loaded = SafeM3UCRL.load(SafeM3UCRL(world, tiny, seed=5).save(tmp_path))
    assert len(loaded.history) == 0
    assert loaded.learn(2) == SafeM3UCRL(world, tiny, seed=5).learn(2)


def half_written(tensors: object, path: Path, metadata: object) -> None:
    """The disk fills in the middle of the file."""
    Path(path).write_bytes(b"\x00" * 100)
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def refused(*anything: object, **named: object) -> None:
    """The disk takes nothing at all."""
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failure", [half_written, refused])
def test_a_full_disk_leaves_the_older_checkpoint(
    agent: SafeM3UCRL, saved: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., None]
) -> None:
    """What was saved before stays whole and loadable, nothing is left beside it, and the agent goes on once there is room."""
    before = (saved / CHECKPOINT_FILE).read_bytes()
    agent.learn(1)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", failure)
        with pytest.raises(OSError, match="No space left"):
            agent.save(saved)
    assert (saved / CHECKPOINT_FILE).read_bytes() == before
    assert files(saved) == {RUN_FILE, SCENARIO_FILE, CHECKPOINT_FILE}
    assert len(SafeM3UCRL.load(saved).history) == 2
    agent.save(saved)
    assert SafeM3UCRL.load(saved).history == agent.history


def test_a_disk_that_was_full_at_the_first_save_harms_no_later_one(
    agent: SafeM3UCRL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes a folder a run's is written last: half of its files leave no run that cannot be loaded."""
    with monkeypatch.context() as patch:
        patch.setattr(Scenario, "save", refused)
        with pytest.raises(OSError, match="No space left"):
            agent.save(tmp_path)
    assert not (tmp_path / RUN_FILE).exists()
    assert SafeM3UCRL.load(agent.save(tmp_path)).history == agent.history


def test_a_run_from_a_device_of_another_kind_goes_on(saved: Path) -> None:
    """Its generator's state means nothing here: seed and episode give a new one, the same each time."""
    path = saved / CHECKPOINT_FILE
    tensors, facts = load_checkpoint(path, CPU)
    tensors["generator"] = torch.zeros(16, dtype=torch.uint8)  # as long as CUDA's
    save_checkpoint(path, tensors, {**facts, "device": "cuda"})
    one, two = SafeM3UCRL.load(saved), SafeM3UCRL.load(saved)
    assert torch.equal(one._generator.get_state(), torch.Generator().manual_seed(3 + 2).get_state())
    assert one.learn(1) == two.learn(1)


def test_a_killed_writer_leaves_the_older_checkpoint(agent: SafeM3UCRL, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the very last step, replacing the file, the older one is in place: a kill before it loses nothing."""
    before = (saved / CHECKPOINT_FILE).read_bytes()
    agent.learn(1)

    def killed(self: Path, target: Path) -> Path:
        assert target.read_bytes() == before
        load_checkpoint(self, CPU)  # the new one is already whole
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        agent.save(saved)
    assert (saved / CHECKPOINT_FILE).read_bytes() == before
    assert files(saved) == {RUN_FILE, SCENARIO_FILE, CHECKPOINT_FILE}


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    """Not a checkpoint at all."""
    path.write_bytes(b"\x80\x04\x95 this was never safetensors" * 10)


def foreign(path: Path) -> None:
    """A safetensors file of somebody else."""
    save_file({"weights": torch.zeros(3)}, path)


def newer(path: Path) -> None:
    """A checkpoint of a later version."""
    save_file({"weights": torch.zeros(3)}, path, {"format": FORMAT, "version": "999", "facts": "{}"})


def without_facts(path: Path) -> None:
    """A header that lacks a part."""
    save_file({"weights": torch.zeros(3)}, path, {"format": FORMAT, "version": str(FORMAT_VERSION)})


def another_agents(path: Path) -> None:
    """A checkpoint whose tensors are not this run's."""
    save_checkpoint(path, {"policy.logits": torch.zeros(1, 4, 2)}, {"barrier_weight": 0.3, "planned_at": 0, "history": []})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "not a readable checkpoint"),
        (garbage, "not a readable checkpoint"),
        (foreign, "not a checkpoint of this library"),
        (newer, "format version '999'"),
        (without_facts, "not a readable checkpoint"),
        (another_agents, "does not fit"),
    ],
)
def test_unusable_checkpoints_are_named(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    """A checkpoint that is corrupt, foreign, newer or another run's is a ValueError that names the file."""
    path = saved / CHECKPOINT_FILE
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        SafeM3UCRL.load(saved)
    assert str(path) in str(caught.value)


def edited(**changes: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file."""

    def edit(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        edited(version=999),
        edited(format="other"),
        edited(config={"colour": "red"}),
        edited(world={}),
        lambda path: path.write_text("[]"),
    ],
)
def test_unusable_run_files_are_named(saved: Path, damage: Callable[[Path], None]) -> None:
    """The same for the run file, loading from it and saving beside it."""
    path = saved / RUN_FILE
    damage(path)
    with pytest.raises(ValueError, match=r"format|readable") as caught:
        SafeM3UCRL.load(saved)
    assert str(path) in str(caught.value)


def test_saving_beside_a_corrupt_run_file_names_it(agent: SafeM3UCRL, saved: Path) -> None:
    """A folder whose run file cannot be read is not saved into, and the message says which file it is."""
    truncate(saved / RUN_FILE)
    with pytest.raises(ValueError, match="run") as caught:
        agent.save(saved)
    assert str(saved) in str(caught.value)


def test_missing_files_are_missing(saved: Path, tmp_path: Path) -> None:
    """No run and no checkpoint are FileNotFoundErrors that say where."""
    with pytest.raises(FileNotFoundError, match="no run at"):
        SafeM3UCRL.load(tmp_path)
    (saved / CHECKPOINT_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        SafeM3UCRL.load(saved)


def test_a_run_from_before_a_setting_goes_on(agent: SafeM3UCRL, saved: Path) -> None:
    """A setting that a run file does not know yet had its default: the run is this agent's, unless it is set otherwise."""
    facts = json.loads((saved / RUN_FILE).read_text())
    del facts["config"]["learn_trips"], facts["config"]["trips"], facts["config"]["gp"]["kind"]
    (saved / RUN_FILE).write_text(json.dumps(facts))
    agent.check_folder(saved)
    assert SafeM3UCRL.load(saved).history == agent.history
    with pytest.raises(ValueError, match=r"another run: config\.learn_trips is False there and True here, by"):
        SafeM3UCRL(agent.mdp, replace(agent.config, learn_trips=True), seed=3).check_folder(saved)


def test_a_folder_of_another_run_is_refused(
    saved: Path, make_world: Callable[..., TaxiMDP], random_city: Callable[..., Scenario], tiny: Config
) -> None:
    """Other settings, seed, world, grid or city: the run that is there stays as it is."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    others = {
        "seed": SafeM3UCRL(make_world(), tiny, seed=4),
        "config": SafeM3UCRL(make_world(), replace(tiny, beta=2.0), seed=3),
        "horizon": SafeM3UCRL(make_world(horizon=4), tiny, seed=3),
        "noise": SafeM3UCRL(make_world(noise_std=0.2), tiny, seed=3),
        "motion": SafeM3UCRL(make_world(motion="congested"), tiny, seed=3),
        "floor": SafeM3UCRL(make_world(floor=0.7), tiny, seed=3),
        "timing": SafeM3UCRL(make_world(reward_timing="current"), tiny, seed=3),
        "cells": SafeM3UCRL(make_world(cells=6), tiny, seed=3),
        "city": SafeM3UCRL(
            TaxiMDP(random_city(0), horizon=3, noise_std=0.1, constraints=[EntropyFloor(0.8)], reward_timing="next"),
            tiny,
            seed=3,
        ),
    }
    accepted = []
    for name, other in others.items():
        for attempt in (other.check_folder, other.save):
            try:
                attempt(saved)
            except ValueError as error:
                refused_for_that = "another run" in str(error)
            else:
                refused_for_that = False
            if not refused_for_that:
                accepted.append((name, attempt.__name__))
    assert accepted == []
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_shorter_run_is_not_saved_over_a_longer_one(agent: SafeM3UCRL, saved: Path, world: TaxiMDP, tiny: Config) -> None:
    """A fresh agent of the same run would cost the episodes that the folder holds; one that is as far may save again."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    fresh = SafeM3UCRL(world, tiny, seed=3)
    fresh.learn(1)
    message = r"holds 2 episodes of this run, and the agent has 1: go on with SafeM3UCRL.load\('.*'\), or choose another folder"
    for attempt in (fresh.save, fresh.check_folder):
        with pytest.raises(ValueError, match=message):
            attempt(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    agent.save(saved)
    fresh.learn(2)
    fresh.save(saved)
    assert len(SafeM3UCRL.load(saved).history) == 3


def test_the_first_policy_is_part_of_the_run(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """Agents that differ in nothing but the policy handed in at the start neither overwrite nor go on with each other's run."""
    firsts = [None, *(FieldPolicy.of_actions(world, torch.full((25, 2), speed)) for speed in (0.01, 0.02))]

    def fresh(first: FieldPolicy | None) -> SafeM3UCRL:
        return SafeM3UCRL(world, tiny, seed=3, first=first)

    for i, first in enumerate(firsts):
        folder = tmp_path / str(i)
        fresh(first).save(folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for other in (one for one in firsts if one is not first):
            stranger = fresh(other)
            with pytest.raises(ValueError, match=r"another run: first is .* there and .* here, by its run\.json"):
                stranger.save(folder)
            with RunFolder(folder) as run, pytest.raises(ValueError, match="another run: first"):
                stranger.learn(1, callback=run)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        resumed = SafeM3UCRL.load(folder)
        resumed.learn(1)
        resumed.save(folder)
        assert fresh(first).learn(1) == resumed.history
    given = [json.loads((tmp_path / str(i) / RUN_FILE).read_text())["first"] for i in range(3)]
    assert given[0] is None and len({*given}) == 3


def test_a_run_from_before_first_was_recorded_goes_on(agent: SafeM3UCRL, saved: Path) -> None:
    """A run file without the fact is one of an agent that began by staying put."""
    facts = json.loads((saved / RUN_FILE).read_text())
    del facts["first"]
    (saved / RUN_FILE).write_text(json.dumps(facts))
    resumed = SafeM3UCRL.load(saved)
    resumed.learn(1)
    resumed.save(saved)
    assert agent.learn(1) == SafeM3UCRL.load(saved).history


def test_the_world_is_rebuilt(make_world: Callable[..., TaxiMDP], tiny: Config, tmp_path: Path) -> None:
    """Scenario, horizon, noise, motion, constraints, timing and type come back from the files."""
    world = make_world(
        horizon=4,
        noise_std=0.07,
        motion="congested",
        constraints=[EntropyFloor(0.7), EntropyFloor(0.6, lipschitz=0.5)],
        reward_timing="current",
        dtype=torch.float64,
    )
    again = SafeM3UCRL.load(SafeM3UCRL(world, tiny).save(tmp_path)).mdp
    assert again.constraints == world.constraints and again.motion == world.motion and again.noise == world.noise
    assert (again.horizon, again.reward_timing, again.dtype) == (4, "current", torch.float64)
    actions = torch.full((25, 2), 0.2, dtype=torch.float64)
    mu = world.transition(world.initial(), actions)
    assert torch.equal(again.transition(again.initial(), actions), mu)


#: One of every kind, for 25 cells.
CONSTRAINTS = [
    EntropyFloor(0.5, lipschitz=0.5),
    WeightedEntropyFloor([0.0, 1.0, 1.0, 0.5, 2.0] * 5, 0.5),
    SmoothedEntropyFloor(0.5, 0.01),
    DistanceCap([0.04] * 25, 0.9, "tv"),
    KeepAway([1.0] + [0.0] * 24, 0.01, "kl"),
    RegionCapacity([0, 3], 0.5),
    RegionCoverage([True] * 5 + [False] * 20, 0.1),
]


def test_no_constraint_is_left_out() -> None:
    """A constraint that the library exports comes back from a run's folder, below: one that no run file can name is noticed."""
    exported = {getattr(safety, name) for name in safety.__all__}
    kinds = {kind for kind in exported if isinstance(kind, type)} - {Constraint}
    assert {type(constraint) for constraint in CONSTRAINTS} == kinds


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda constraint: type(constraint).__name__)
def test_every_constraint_comes_back(
    make_world: Callable[..., TaxiMDP], tiny: Config, tmp_path: Path, constraint: Constraint
) -> None:
    """A run with any constraint of the library resumes from its folder alone, as the same world."""
    world = make_world(constraints=[constraint])
    folder = SafeM3UCRL(world, tiny).save(tmp_path)
    assert SafeM3UCRL.load(folder).mdp.constraints == (constraint,)
    SafeM3UCRL.load(folder, mdp=world)


@pytest.mark.parametrize("options", [{"motion": ShortMotion()}, {"motion": HalvedMotion()}, {"constraints": [OwnFloor(0.8)]}])
def test_worlds_of_the_users_own_are_handed_in(
    make_world: Callable[..., TaxiMDP], tiny: Config, tmp_path: Path, options: dict[str, object]
) -> None:
    """A motion or constraint that no file can hold is asked for; with it the run goes on bit for bit."""
    world = make_world(**options)
    agent = SafeM3UCRL(world, tiny, seed=1)
    agent.learn(2)
    agent.save(tmp_path)
    with pytest.raises(ValueError, match=r"hand the world in.*mdp="):
        SafeM3UCRL.load(tmp_path)
    resumed = SafeM3UCRL.load(tmp_path, mdp=world)
    assert resumed.mdp is world
    assert resumed.learn(1) == agent.learn(1)


def test_trips_of_the_users_own_are_handed_in(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """A city with other trips is not rebuilt as one without any: the world is asked for, and another one is refused."""
    turned = torch.eye(25).roll(1, 0)
    city = world.with_trips(turned)
    agent = SafeM3UCRL(city, tiny, seed=1)
    agent.learn(1)
    agent.save(tmp_path)
    with pytest.raises(ValueError, match=r"trips, of the user's own: hand the world in.*mdp="):
        SafeM3UCRL.load(tmp_path)
    for other, differ in ((world, "kind"), (world.with_trips(turned.roll(1, 0)), "trips")):
        with pytest.raises(ValueError, match=f"another world: .*{differ}"):
            SafeM3UCRL.load(tmp_path, mdp=other)
        with pytest.raises(ValueError, match="another run: world"):
            SafeM3UCRL(other, tiny, seed=1).check_folder(tmp_path)
    resumed = SafeM3UCRL.load(tmp_path, mdp=world.with_trips(turned.clone()))
    assert resumed.learn(1) == agent.learn(1)


def test_nothing_is_unpickled() -> None:
    """No module of the package can execute what a checkpoint says: no pickle, no torch.load, no eval."""
    package = Path(safe_m3_agent.__file__).parent
    # Jobs are pickled from one process of ours to another, and reach no file.
    sources = sorted(set(package.rglob("*.py")) - {package / "jobs.py"})
    assert len(sources) > 15
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}, source
            if isinstance(node, ast.Attribute):
                assert not (
                    node.attr == "load" and isinstance(node.value, ast.Name) and node.value.id in ("torch", "np", "numpy")
                ), source
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), source
