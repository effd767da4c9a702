"""The folder of a run: every episode is on disk before the next one starts."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mf_taxi_env import TaxiMDP
from safe_m3_agent import Config, Episode, History, SafeM3UCRL
from safe_m3_agent.checkpoint import CHECKPOINT_FILE
from safe_m3_agent.planners.bptt import BPTTPlanner, Plan
from safe_m3_agent.run import EVENTS_FOLDER, HISTORY_FILE, RunFolder


def test_every_episode_is_recorded_at_once(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """After each episode the checkpoint and the table hold it, so that a kill costs at most the one under way."""
    folder = tmp_path / "deep" / "run"
    seen = []

    def look(agent: SafeM3UCRL, episode: Episode) -> None:
        run(agent, episode)
        with (folder / HISTORY_FILE).open(newline="") as file:
            rows = list(csv.DictReader(file))
        saved = SafeM3UCRL.load(folder).history
        assert saved == agent.history and len(rows) == len(saved)
        assert float(rows[-1]["reward"]) == episode.reward
        seen.append(episode.episode)

    with RunFolder(folder) as run:
        SafeM3UCRL(world, tiny).learn(3, callback=look)
    assert seen == [0, 1, 2]


def test_events_hold_every_finite_number(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """TensorBoard shows each metric over episodes; a NaN is left out instead of drawn as a number."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunFolder(tmp_path) as run:
        history = SafeM3UCRL(world, tiny).learn(2, callback=run)
    events = accumulator.EventAccumulator(str(tmp_path / EVENTS_FOLDER)).Reload()
    rewards = events.Scalars("reward")
    assert [event.step for event in rewards] == [0, 1]
    assert [event.value for event in rewards] == pytest.approx(history.column("reward"))
    assert [event.step for event in events.Scalars("objective")] == [1]  # nothing was planned in episode 0
    assert "episode" not in events.Tags()["scalars"] and "certified" in events.Tags()["scalars"]


def test_events_tell_of_learned_trips(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """How many trips were seen, how far members and truth are from the mode, where trips are learned; nothing where not."""
    agents = [SafeM3UCRL(world, replace(tiny, learn_trips=learned, representative_agents=50)) for learned in (True, False)]
    for agent in agents:
        with RunFolder(tmp_path / str(agent.config.learn_trips)) as run:
            agent.learn(2, callback=run)
    points = scalars(tmp_path / "True")
    assert points["trips/observed"][-1] == (1, agents[0].trips.trips.size)  # type: ignore[union-attr]
    assert 0 < points["trips/doubt"][1][1] < points["trips/doubt"][0][1] < 1
    assert points["trips/error"][1][1] == pytest.approx(agents[0].trip_metrics["error"])
    assert not any(name.startswith("trips/") for name in scalars(tmp_path / "False")) and agents[1].trip_metrics == {}


def test_checkpoint_comes_first(world: TaxiMDP, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with the rest of the record, the episode's checkpoint is already safe."""

    def fail(self: object, path: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safe_m3_agent.history.History.to_csv", fail)
    with RunFolder(tmp_path) as run, pytest.raises(OSError, match="No space"):
        SafeM3UCRL(world, tiny).learn(1, callback=run)
    assert (tmp_path / CHECKPOINT_FILE).exists()
    assert len(SafeM3UCRL.load(tmp_path).history) == 1


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All that TensorBoard would show of a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / EVENTS_FOLDER), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_resumed_run_writes_the_scalars_that_a_kill_cost(
    world: TaxiMDP, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between checkpoint and events, the next start adds what is missing, nothing twice, and the table with it."""

    record = RunFolder._record

    def killed(self: RunFolder, history: History) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt
        record(self, history)

    with RunFolder(tmp_path / "killed") as run:
        agent = SafeM3UCRL(world, tiny)
        agent.learn(1, callback=run)
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "_record", killed)
            with pytest.raises(KeyboardInterrupt):
                agent.learn(1, callback=run)
    assert [step for step, _ in scalars(tmp_path / "killed")["reward"]] == [0]
    with RunFolder(tmp_path / "killed") as run:
        SafeM3UCRL.load(tmp_path / "killed").learn(1, callback=run)
    with RunFolder(tmp_path / "alone") as run:
        SafeM3UCRL(world, tiny).learn(3, callback=run)
    mended, whole = scalars(tmp_path / "killed"), scalars(tmp_path / "alone")
    mended.pop("seconds"), whole.pop("seconds")
    assert mended == whole and [step for step, _ in whole["reward"]] == [0, 1, 2]
    assert History.from_csv(tmp_path / "killed" / HISTORY_FILE) == History.from_csv(tmp_path / "alone" / HISTORY_FILE)


def test_events_cut_short_are_completed(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """A kill in the middle of writing events leaves half a record; what can be read is kept, the rest is written again."""
    with RunFolder(tmp_path) as run:
        SafeM3UCRL(world, tiny).learn(2, callback=run)
    whole = scalars(tmp_path)
    (file,) = (tmp_path / EVENTS_FOLDER).iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    assert scalars(tmp_path) != whole
    with RunFolder(tmp_path) as run:
        run.on_training_start(SafeM3UCRL.load(tmp_path))
    mended = scalars(tmp_path)
    assert {tag: sorted(points) for tag, points in mended.items()} == whole


def test_a_whole_record_is_left_alone(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """Starting again where nothing is missing adds no file of events."""
    with RunFolder(tmp_path) as run:
        SafeM3UCRL(world, tiny).learn(1, callback=run)
    before = sorted((tmp_path / EVENTS_FOLDER).iterdir())
    with RunFolder(tmp_path) as run:
        run.on_training_start(SafeM3UCRL.load(tmp_path))
    assert sorted((tmp_path / EVENTS_FOLDER).iterdir()) == before


def test_another_runs_folder_is_refused_before_anything_is_written(
    make_world: Callable[..., TaxiMDP], tiny: Config, tmp_path: Path
) -> None:
    """An agent that goes on in the wrong folder must not overwrite its table."""
    with RunFolder(tmp_path) as run:
        SafeM3UCRL(make_world(), tiny, seed=0).learn(1, callback=run)
    other = SafeM3UCRL(make_world(), tiny, seed=1)
    other.learn(2)
    before = (tmp_path / HISTORY_FILE).read_bytes()
    with RunFolder(tmp_path) as run, pytest.raises(ValueError, match="another run"):
        other.learn(1, callback=run)
    assert (tmp_path / HISTORY_FILE).read_bytes() == before and len(other.history) == 2


@pytest.mark.parametrize("failing", [0, 2])
def test_a_planner_that_breaks_down_leaves_the_last_good_policy(
    world: TaxiMDP, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """An objective that is no number, be it in the very first episode: the folder holds the policy in use before it."""
    plan, calls = BPTTPlanner.plan, []

    def breaking(self: BPTTPlanner, *arguments: Any, **options: Any) -> Plan:
        made = plan(self, *arguments, **options)
        calls.append(made)
        return made._replace(objective=math.nan) if len(calls) > failing else made

    monkeypatch.setattr(BPTTPlanner, "plan", breaking)
    agent = SafeM3UCRL(world, replace(tiny, model="known", rounds=1))
    with RunFolder(tmp_path) as run, pytest.raises(FloatingPointError, match="objective is nan"):
        agent.learn(5, callback=run)
    loaded = SafeM3UCRL.load(tmp_path)
    assert len(loaded.history) == failing and loaded.history == agent.history
    mu = world.initial()
    assert torch.equal(loaded.policy.field(mu, 0), agent.policy.field(mu, 0))
    assert (failing > 0) == bool(loaded.policy.field(mu, 0).abs().max() > 0)
    assert not any(episode.violations for episode in loaded.history)


def test_a_second_run_in_the_folder_is_refused(make_world: Callable[..., TaxiMDP], tiny: Config, tmp_path: Path) -> None:
    """Recording another run over a first one is an error, not a mixture."""
    with RunFolder(tmp_path) as run:
        SafeM3UCRL(make_world(), tiny, seed=0).learn(1, callback=run)
    with RunFolder(tmp_path) as run, pytest.raises(ValueError, match="another run"):
        SafeM3UCRL(make_world(), tiny, seed=1).learn(1, callback=run)
    assert SafeM3UCRL.load(tmp_path).seed == 0


def test_a_run_is_not_begun_again_over_what_it_has_learned(world: TaxiMDP, tiny: Config, tmp_path: Path) -> None:
    """A script started a second time in its folder says how to go on, and leaves every file as it is."""
    with RunFolder(tmp_path) as run:
        SafeM3UCRL(world, tiny).learn(2, callback=run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = r"holds 2 episodes of this run, and the agent has 0: go on with SafeM3UCRL.load\('.*'\), or choose another folder"
    with RunFolder(tmp_path) as run, pytest.raises(ValueError, match=message):
        SafeM3UCRL(world, tiny).learn(1, callback=run)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with RunFolder(tmp_path) as run:
        assert len(SafeM3UCRL.load(tmp_path).learn(1, callback=run)) == 3
