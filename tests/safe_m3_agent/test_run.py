"""The folder of a run: every episode is on disk before the next one starts."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from mf_taxi_env import TaxiMDP
from safe_m3_agent import Config, Episode, SafeM3UCRL
from safe_m3_agent.checkpoint import CHECKPOINT_FILE
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


def test_checkpoint_comes_first(world: TaxiMDP, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with the rest of the record, the episode's checkpoint is already safe."""

    def fail(self: object, path: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safe_m3_agent.history.History.to_csv", fail)
    with RunFolder(tmp_path) as run, pytest.raises(OSError, match="No space"):
        SafeM3UCRL(world, tiny).learn(1, callback=run)
    assert (tmp_path / CHECKPOINT_FILE).exists()
    assert len(SafeM3UCRL.load(tmp_path).history) == 1


def test_a_second_run_in_the_folder_is_refused(make_world: Callable[..., TaxiMDP], tiny: Config, tmp_path: Path) -> None:
    """Recording another run over a first one is an error, not a mixture."""
    with RunFolder(tmp_path) as run:
        SafeM3UCRL(make_world(), tiny, seed=0).learn(1, callback=run)
    with RunFolder(tmp_path) as run, pytest.raises(ValueError, match="another run"):
        SafeM3UCRL(make_world(), tiny, seed=1).learn(1, callback=run)
    assert SafeM3UCRL.load(tmp_path).seed == 0
