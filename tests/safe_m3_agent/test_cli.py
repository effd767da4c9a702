"""The console script: it keeps its promises on the screen and on disk, and explains what it cannot do."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

from mf_taxi_env import Bound, Scenario, TaxiMDP
from mf_taxi_env.bound import NoBoundError
from safe_m3_agent import SafeM3UCRL
from safe_m3_agent.checkpoint import CHECKPOINT_FILE, RUN_FILE
from safe_m3_agent.cli import main
from safe_m3_agent.model.ensemble import ProbabilisticEnsemble
from safe_m3_agent.planners.bptt import BPTTPlanner, Plan
from safe_m3_agent.run import EVENTS_FOLDER, FIGURES_FOLDER, HISTORY_FILE
from safe_m3_agent.world_options import headline
from safe_m3_agent.worlds import SCENARIO_FILE

SMALL = [
    *("--cells", "6", "--horizon", "3", "--noise-std", "0.1", "--entropy-floor", "0.8", "--representative-agents", "4"),
    *("--ensemble.members", "3", "--ensemble.hidden", "4", "4", "--ensemble.steps", "6", "--bptt.epochs", "4"),
    *("--certificate.restarts", "2", "--certificate.steps", "1"),
]
PNG = b"\x89PNG\r\n\x1a\n"


def train(out: Path, *options: str, episodes: int = 2) -> None:
    """A run of a fraction of a second per episode."""
    main(["train", *SMALL, "--episodes", str(episodes), "--out", str(out), *options])


def rows(folder: Path) -> list[dict[str, str]]:
    """The history on disk, without durations."""
    with (folder / HISTORY_FILE).open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr with which the arguments are refused."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("safe-m3: error: ") and "\n" not in error and "Traceback" not in error
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(folder)
    return folder


def test_train_reports_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary names score, return, violations, margin, certificate, time and files; every file is there."""
    out = tmp_path / "run"
    train(out)
    shown = capsys.readouterr().out
    assert "6 x 6 cells, entropy of the fleet at least 80 % of its maximum" in shown
    assert "No safe policy earns more than" in shown
    lines = dict(line.split("  ", 1) for line in shown.splitlines() if "  " in line)
    assert {"score", "return", "violations", "smallest margin", "first certificate", "time", "run", "pictures"} <= set(lines)
    assert lines["violations"].strip() == "in 0 of 2 executed episodes"
    assert {RUN_FILE, SCENARIO_FILE, CHECKPOINT_FILE, HISTORY_FILE, "metrics.json"} <= {path.name for path in out.iterdir()}
    for name in ("learning_curve.png", "reliability.png"):
        assert (out / FIGURES_FOLDER / name).read_bytes().startswith(PNG)
    assert len(list((out / EVENTS_FOLDER).iterdir())) == 1
    assert not list(out.rglob("*.tmp"))
    assert len(rows(out)) == 2


def test_metrics_are_those_of_the_history(run: Path) -> None:
    """The machine-readable summary agrees with the table of episodes."""
    metrics, history = json.loads((run / "metrics.json").read_text()), SafeM3UCRL.load(run).history
    assert metrics["score"] == history[-1].score and metrics["return"] == history[-1].reward
    assert metrics["episodes"] == 2 and metrics["episodes_with_violation"] == 0
    assert metrics["smallest_margin"] == min(history.column("min_margin"))
    assert metrics["bound"] >= metrics["return"]
    first = [episode.episode for episode in history if episode.certified]
    assert metrics["first_certified_episode"] == (first[0] if first else None)


def test_options_reach_the_agent(run: Path) -> None:
    """Settings given on the command line are those of the run, nested ones too."""
    agent = SafeM3UCRL.load(run)
    assert agent.config.representative_agents == 4 and agent.config.bptt.epochs == 4
    assert agent.config.ensemble.members == 3 and agent.config.ensemble.hidden == (4, 4)
    assert agent.mdp.grid.cells == 6 and agent.mdp.horizon == 3 and agent.mdp.constraints[0].fraction == 0.8  # type: ignore[attr-defined]
    assert agent.mdp.reward_timing == "next" and agent.seed == 0


def test_trips_can_be_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with --learn-trips goes on where it was, and a swarm, which has no trips, is refused."""
    train(tmp_path / "whole", "--learn-trips", "--trips.members", "4", episodes=3)
    train(tmp_path / "halves", "--learn-trips", "--trips.members", "4", episodes=1)
    train(tmp_path / "halves", "--learn-trips", "--trips.members", "4", "--resume", episodes=3)
    assert rows(tmp_path / "whole") == rows(tmp_path / "halves")
    agent = SafeM3UCRL.load(tmp_path / "whole")
    assert agent.trips is not None and agent.trips.members == 4 and agent.trips.trips.size > 0
    capsys.readouterr()
    error = refusal(capsys, "train", "--world", "swarm", "--learn-trips", "--out", str(tmp_path / "swarm"))
    assert "learn_trips needs a world with trips, a TaxiMDP, got a SwarmMDP" in error
    assert not (tmp_path / "swarm").exists()


def test_evaluate_prints_every_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of the executed evening, its mean against the bound, score and violations."""
    main(["evaluate", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "step"
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert all(0.8 <= float(line.split()[2]) <= 1 for line in lines[1:4])
    assert lines[4].startswith("mean") and "certified bound" in lines[4]
    assert lines[5] == f"score {SafeM3UCRL.load(run).history[-1].score:.3f}, 0 violations"


def test_fleet_reports_and_draws(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The operator's figures of a finite fleet, and its picture."""
    main(["fleet", str(run), "--taxis", "500", "--runs", "2", "--resolution", "continuous", "--workers", "1"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"{run}, resolution 'continuous'")
    for name in ("taxis", "500", "mean field", "Enough for entropy floors", "table", "pictures"):
        assert any(line.strip().startswith(name) for line in shown.splitlines()), name
    assert (run / FIGURES_FOLDER / "fleet_500.png").read_bytes().startswith(PNG)


def test_an_existing_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --resume a folder that holds a run is refused, and stays as it is."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    error = refusal(capsys, "train", *SMALL, "--episodes", "2", "--out", str(run))
    assert "holds a run already" in error and "--resume" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resume_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed after two of four episodes, the history is that of four episodes at once; a finished run just reports."""
    train(tmp_path / "parts", episodes=2)
    capsys.readouterr()
    train(tmp_path / "parts", "--resume", episodes=4)
    assert "Going on after episode 2" in capsys.readouterr().out
    train(tmp_path / "whole", "--resume", episodes=4)  # nothing there yet: it begins
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole") and len(rows(tmp_path / "parts")) == 4
    before = (tmp_path / "parts" / CHECKPOINT_FILE).read_bytes()
    train(tmp_path / "parts", "--resume", episodes=4)
    assert (tmp_path / "parts" / CHECKPOINT_FILE).read_bytes() == before


@pytest.mark.parametrize(
    "change", [("--seed", "1"), ("--beta", "2"), ("--cells", "5"), ("--entropy-floor", "0.7"), ("--motion", "congested")]
)
def test_resume_of_another_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str]) -> None:
    """--resume with other settings neither goes on with the old ones nor mixes the two."""
    before = (run / CHECKPOINT_FILE).read_bytes()
    error = refusal(capsys, "train", *SMALL, *change, "--episodes", "3", "--out", str(run), "--resume")
    assert "another run" in error
    assert (run / CHECKPOINT_FILE).read_bytes() == before


def test_resume_after_a_kill(tmp_path: Path) -> None:
    """A process killed in the middle of a run loses nothing but the episode under way: resumed, it equals a run left alone."""
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "safe_m3_agent.cli", "train", *SMALL, "--episodes", "100000", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (folder / CHECKPOINT_FILE).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert (folder / CHECKPOINT_FILE).exists()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = len(SafeM3UCRL.load(folder).history)
    assert done >= 1
    train(folder, "--resume", episodes=done + 2)
    train(tmp_path / "alone", episodes=done + 2)
    assert rows(folder) == rows(tmp_path / "alone") and len(rows(folder)) == done + 2


def test_mistakes_are_explained_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown scenarios, missing files and runs, and values out of range: one line, status 2, no traceback."""
    out = str(tmp_path / "new")
    assert "unknown scenario 'atlantis'" in refusal(capsys, "train", "--scenario", "atlantis", "--out", out)
    assert "none.npz" in refusal(capsys, "train", "--scenario", str(tmp_path / "none.npz"), "--out", out)
    assert "cells" in refusal(capsys, "train", "--cells", "0", "--out", out)
    assert "fraction" in refusal(capsys, "train", *SMALL, "--entropy-floor", "1.5", "--out", out)
    assert "no run at" in refusal(capsys, "evaluate", str(tmp_path))
    assert "no run at" in refusal(capsys, "fleet", str(tmp_path))
    assert "episode" in refusal(capsys, "train", *SMALL, "--episodes", "0", "--out", out)
    assert not (tmp_path / "new" / CHECKPOINT_FILE).exists()


def test_options_out_of_range_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that its dataclass refuses ends in a message that names it, not in a traceback."""
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "new", "--ensemble.members", "1")
    assert caught.value.code == 2
    shown = capsys.readouterr()
    text = " ".join((shown.err + shown.out).replace("│", " ").split())
    assert "ensemble.members must be an integer >= 2, got 1" in text and "Traceback" not in text


def test_a_planner_that_breaks_down_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line: which episode, what the folder still holds, why --resume will not help; the run can be evaluated."""
    plan = BPTTPlanner.plan

    def broken(self: BPTTPlanner, *arguments: Any, **options: Any) -> Plan:
        return plan(self, *arguments, **options)._replace(objective=math.nan)

    monkeypatch.setattr(BPTTPlanner, "plan", broken)
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        train(out, episodes=3)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("safe-m3: error: episode 1 failed: the planner's objective is nan")
    assert f"{out} holds the run up to there (episodes: 1)" in error and "--resume would fail" in error
    assert len(SafeM3UCRL.load(out).history) == 1
    main(["evaluate", str(out)])
    assert "0 violations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.linalg.LinAlgError("linalg.solve: The matrix is singular.\nMore."), "--resume would fail at the same episode"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "--resume goes on once the device has more",
        ),
    ],
    ids=["singular", "memory"],
)
def test_a_fit_that_breaks_down_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    """A matrix that is singular, or a device that is full, is one line that says what is saved and how to go on."""
    fit, calls = ProbabilisticEnsemble.fit, []

    def broken(self: ProbabilisticEnsemble, *arguments: Any) -> None:
        fit(self, *arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise error

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ProbabilisticEnsemble, "fit", broken)
        with pytest.raises(SystemExit) as caught:
            train(out, episodes=3)
    assert caught.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    reason = str(error).partition("\n")[0].rstrip(".")
    assert line.startswith(f"safe-m3: error: episode 1 failed: {reason}. {out} holds the run up to there (episodes: 1)")
    assert advice in line
    train(out, "--resume", episodes=3)
    train(tmp_path / "alone", episodes=3)
    assert rows(out) == rows(tmp_path / "alone")


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the second episode: one line, the status of an interrupted command, and a run that goes on."""
    fit, calls = ProbabilisticEnsemble.fit, []

    def interrupted(self: ProbabilisticEnsemble, *arguments: Any) -> None:
        fit(self, *arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ProbabilisticEnsemble, "fit", interrupted)
        with pytest.raises(SystemExit) as caught:
            train(out, episodes=3)
    assert caught.value.code == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == f"safe-m3: stopped; {out} holds 1 episode(s), the same command with --resume goes on"
    train(out, "--resume", episodes=3)
    assert len(rows(out)) == 3


def test_a_resumed_run_warns_once(tmp_path: Path) -> None:
    """An unsafe start is said once per command that executes episodes, also where the agent is loaded."""
    for episodes, options in ((1, ()), (3, ("--resume",))):
        with pytest.warns(UserWarning, match="staying put, the first policy in use, violates") as caught:
            train(tmp_path / "run", "--entropy-floor", "0.999", *options, episodes=episodes)
        assert len(caught) == 1


def test_importing_without_the_extra_is_harmless() -> None:
    """Without tyro, matplotlib and the rest the module imports; main() says what to install, in one line."""
    blocked = ("tyro", "matplotlib", "safetensors", "tensorboard", "tqdm", "cvxpy", "wandb")
    program = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Blocker())
import safe_m3_agent.cli
print("imported")
safe_m3_agent.cli.main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "imported\n" and done.returncode == 1
    assert done.stderr.startswith("safe-m3: error: ") and "safe-m3-taxi[agent]" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_device_that_is_not_there_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typo in the device is one line as well."""
    assert "device" in refusal(capsys, "train", *SMALL, "--device", "abacus", "--out", str(tmp_path / "new"))


# -- the swarm ------------------------------------------------------------------------------------------------------------

RING = [
    *("--world", "swarm", "--cells", "8", "--horizon", "20", "--representative-agents", "4", "--bptt.epochs", "3"),
    *("--ensemble.members", "3", "--ensemble.hidden", "4", "4", "--ensemble.steps", "6"),
    *("--certificate.restarts", "2", "--certificate.steps", "1"),
]


@pytest.mark.parametrize("options", [("--no-constrained",), ("--entropy-floor", "0.5")], ids=["free", "floor"])
def test_a_swarm_is_trained_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    """The summary tells what is known to be possible; the run has every file but a scenario, resumes, and is evaluated."""
    out = tmp_path / "run"
    main(["train", *RING, *options, "--episodes", "2", "--out", str(out)])
    shown = capsys.readouterr().out
    floor = "--entropy-floor" in options
    assert "swarm, 8 cells of a ring" in shown and "the analytic control" in shown and "nats of" not in shown
    assert ("entropy of the fleet at least 50 % of its maximum" in shown) == floor
    assert {RUN_FILE, CHECKPOINT_FILE, HISTORY_FILE, "metrics.json"} <= {path.name for path in out.iterdir()}
    assert not (out / SCENARIO_FILE).exists()
    assert (out / FIGURES_FOLDER / "learning_curve.png").read_bytes().startswith(PNG)
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["score"] is None) == (metrics["bound"] is None) == floor
    main(["train", *RING, *options, "--episodes", "3", "--out", str(out), "--resume"])
    assert "Going on after episode 2" in capsys.readouterr().out and len(rows(out)) == 3
    main(["evaluate", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:22]] == [*map(str, range(1, 21)), "mean"]
    assert lines[23] == f"return {SafeM3UCRL.load(out).history[-1].reward:.3f}"
    assert "taxis in a city, got one of SwarmMDP" in refusal(capsys, "fleet", str(out))


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--world", "swarm", "--scenario", "shenzhen"), "--scenario"),
        (("--world", "swarm", "--noise-std", "0.1"), "--noise-std"),
        (("--world", "swarm", "--motion", "free"), "--motion"),
        (("--world", "taxi", "--dt", "0.1"), "--dt"),
    ],
)
def test_options_of_the_other_world_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], option: str
) -> None:
    """An option that would have no effect is not swallowed."""
    error = refusal(capsys, "train", *arguments, "--out", str(tmp_path / "new"))
    assert f"{option} is no option of --world {arguments[1]}" in error


@pytest.mark.parametrize(("steps", "told"), [(3, None), (2, "the last one repeats"), (4, "those after step 3 are not used")])
def test_a_city_of_another_length_is_told(random_city: Callable[..., Scenario], steps: int, told: str | None) -> None:
    """Half an evening that is never used, or used twice, would go unnoticed."""
    shown = headline(TaxiMDP(random_city(0, steps=steps), horizon=3))
    assert len(shown.splitlines()) == (2 if told is None else 3)
    assert told is None or f"The city has {steps} steps, an episode 3: {told}; --horizon {steps}" in shown


def test_a_bound_that_is_not_found_stops_nothing(random_city: Callable[..., Scenario], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for information: where the solver is stuck, training goes on without it."""

    def stuck(world: TaxiMDP) -> Bound:
        raise NoBoundError("the solver finds no bound")

    monkeypatch.setattr("safe_m3_agent.world_options.certified_bound", stuck)
    assert headline(TaxiMDP(random_city(0))).endswith("\nWhat is possible is not known: the solver finds no bound")
