"""Finite fleets of a trained policy: what is recorded is what the simulator gives, once each, wherever it ran."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

from mf_taxi_env import EntropyFloor, FleetSimulator, TaxiMDP
from mf_taxi_env.finite_samples import entropy_bias
from mf_taxi_env.fleet_metrics import episode_metrics, estimate, fleet_metrics
from mf_taxi_env.information import entropy
from mf_taxi_env.safety import Constraint, RegionCapacity
from safe_m3_agent.cli import main
from safe_m3_agent.fleet_evaluation import Subject, evaluate_fleets, recorded_fleets, sufficient_taxis
from safe_m3_agent.fleet_summary import fleet_report, safe_from, share_of, summarized
from safe_m3_agent.fleet_table import FLEET_FILE
from safe_m3_agent.jobs import JobsError
from safe_m3_agent.policy import FieldPolicy, fingerprint

SIZES, RUNS = (7, 60, 500), 3
Make = Callable[..., TaxiMDP]


class Roaming(FieldPolicy):
    """A little towards the centre."""

    def __init__(self, world: TaxiMDP) -> None:
        super().__init__(world)
        with torch.no_grad():
            self.logits.copy_(0.2 * (0.5 - world.centers))


class Failing(Roaming):
    """Not with seven taxis: whole sevenths of the fleet are more than it can bear."""

    def field(self, mu: Tensor, t: int) -> Tensor:
        if bool(((7 * mu).round() - 7 * mu).abs().max() < 1e-5):
            raise ArithmeticError("sevenths")
        return super().field(mu, t)


class Fatal(Roaming):
    """Takes the first worker along that asks it."""

    def __init__(self, world: TaxiMDP, marker: Path) -> None:
        super().__init__(world)
        self.marker, self.parent = marker, os.getpid()

    def field(self, mu: Tensor, t: int) -> Tensor:
        if os.getpid() != self.parent and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().field(mu, t)


def lines(folder: Path) -> list[list[str]]:
    """The table on disk without durations and fingerprints, sorted: the order in which episodes end is chance."""
    with (folder / FLEET_FILE).open(newline="") as file:
        return sorted(
            [value for name, value in row.items() if name not in ("seconds", "policy")] for row in csv.DictReader(file)
        )


@pytest.fixture(scope="module")
def world(make_world: Make) -> TaxiMDP:
    """Three steps on 5 x 5 cells."""
    return make_world()


@pytest.fixture(scope="module")
def alone(world: TaxiMDP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all episodes, from this process."""
    folder = tmp_path_factory.mktemp("alone")
    evaluate_fleets({str(folder): Subject.of(world, Roaming(world))}, SIZES, RUNS, workers=1)
    return folder


def test_a_line_is_what_the_simulator_gives(world: TaxiMDP, alone: Path) -> None:
    """Every number of an episode is recomputed from a fleet with the recorded size and seed."""
    policy = Roaming(world)
    subject = Subject.of(world, policy)
    recorded = recorded_fleets(alone, subject, "cell")
    assert [(one.taxis, one.seed) for one in recorded] == [(size, seed) for size in SIZES for seed in range(RUNS)]
    for one in recorded:
        rollout = FleetSimulator(world, one.taxis, seed=one.seed).rollout(policy)
        fleets, floor = rollout.distributions[1:], 0.8 * math.log(25)
        margins = (entropy(fleets) - floor).tolist()
        demand = world.demand(0)
        kl = [float((demand * (demand / mu.clamp_min(1e-30)).log()).sum()) for mu in fleets]
        assert one.step_margin == pytest.approx(margins, abs=1e-5) and one.margin == min(one.step_margin)
        assert one.step_kl == pytest.approx(kl, rel=1e-4, abs=1e-5) and one.kl == pytest.approx(sum(kl) / 3, rel=1e-4)
        assert one.reward == pytest.approx(-sum(kl), rel=1e-4)  # this world pays for where the fleet arrives
        assert one.entropy == pytest.approx(float(entropy(fleets).min()) / math.log(25), abs=1e-5)
        assert one.violations == sum(margin < 0 for margin in margins)
        assert one.occupancy == pytest.approx(float(rollout.occupied.mean()))
        assert one.repositioning_km == pytest.approx(float(rollout.travelled_km.sum())) and one.repositioning_km > 0
        assert one.served_demand == pytest.approx(float(torch.minimum(rollout.distributions[:-1], demand).sum(-1).mean()))
        for name, value in episode_metrics(fleet_metrics(rollout, world)).items():
            assert getattr(one, name) == pytest.approx(value, nan_ok=True), name
        gaps = 0.5 * (fleets - subject.executed.mu[1:]).abs().sum(-1)
        assert one.gap == pytest.approx(float(gaps.mean()))
        if one.taxis < 25:
            assert math.isnan(one.corrected_margin) and math.isnan(one.corrected_violations)
        else:
            bias = 24 / (2 * one.taxis)
            assert one.corrected_margin == pytest.approx(min(margins) + bias, abs=1e-5)
            assert one.corrected_violations == sum(margin + bias < 0 for margin in margins)


def test_where_episodes_run_changes_nothing(world: TaxiMDP, alone: Path, tmp_path: Path) -> None:
    """Two processes write the table that one writes."""
    evaluate_fleets({str(tmp_path): Subject.of(world, Roaming(world))}, SIZES, RUNS, workers=2)
    assert lines(tmp_path) == lines(alone) and len(lines(alone)) == len(SIZES) * RUNS


def test_a_killed_ray_worker_changes_nothing(world: TaxiMDP, alone: Path, tmp_path: Path) -> None:
    """A local cluster of two workers, of which one is killed in the middle of an episode, gives the table of one process."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    marker = tmp_path / "killed"
    evaluate_fleets({str(tmp_path): Subject.of(world, Fatal(world, marker))}, SIZES, RUNS, workers=2, ray="local")
    assert marker.exists()
    assert lines(tmp_path) == lines(alone)
    assert not ray.is_initialized()  # the cluster ends with the evaluation


def test_a_second_call_does_what_is_missing(
    world: TaxiMDP, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded stays as it is, more sizes and runs are added, and half a line is dropped."""
    subject = {str(tmp_path): Subject.of(world, Roaming(world))}
    seen: list[int] = []
    evaluate_fleets(subject, SIZES[:2], 2, workers=1)
    before = (tmp_path / FLEET_FILE).read_bytes()
    with monkeypatch.context() as patched:  # nothing is simulated a second time: it would fail
        patched.setattr("safe_m3_agent.fleet_evaluation.measure", None)
        evaluate_fleets(subject, SIZES[:2], 2, workers=1, progress=seen.append)
    assert (tmp_path / FLEET_FILE).read_bytes() == before and sorted(seen) == [7, 7, 60, 60]
    whole, _, last = before.rstrip(b"\n").rpartition(b"\n")
    (tmp_path / FLEET_FILE).write_bytes(whole + b"\n" + last[:-3])  # as a kill leaves it
    evaluate_fleets(subject, SIZES, RUNS, workers=1)
    assert (tmp_path / FLEET_FILE).read_bytes().startswith(whole + b"\n")
    assert lines(tmp_path) == lines(alone)


def test_a_line_that_is_there_twice_counts_once(world: TaxiMDP, alone: Path, tmp_path: Path) -> None:
    """As two calls at a time would leave it."""
    text = (alone / FLEET_FILE).read_text()
    (tmp_path / FLEET_FILE).write_text(text + text.splitlines(keepends=True)[-1])
    assert len(recorded_fleets(tmp_path, Subject.of(world, Roaming(world)), "cell")) == len(SIZES) * RUNS


def test_another_policy_starts_anew(world: TaxiMDP, alone: Path, tmp_path: Path) -> None:
    """Training goes on in the folder: the episodes of the policy before do not count for the one after; nor resolutions."""
    shutil.copy(alone / FLEET_FILE, tmp_path)
    stay = Subject.of(world, FieldPolicy(world))
    assert fingerprint(stay.policy) != fingerprint(Roaming(world))
    assert not recorded_fleets(tmp_path, stay, "cell")
    evaluate_fleets({str(tmp_path): stay}, [7], 2, workers=1)
    evaluate_fleets({str(tmp_path): stay}, [7], 1, workers=1, resolution="continuous")
    assert [one.repositioning_km for one in recorded_fleets(tmp_path, stay, "cell")] == [0.0, 0.0]
    assert len(recorded_fleets(tmp_path, stay, "continuous")) == 1
    assert len(recorded_fleets(tmp_path, Subject.of(world, Roaming(world)), "cell")) == len(SIZES) * RUNS


def test_one_failure_loses_no_other_episode(world: TaxiMDP, alone: Path, tmp_path: Path) -> None:
    """Fleets of seven fail, with their size and seed told; the others are recorded, and only those of seven are missing."""
    with pytest.raises(JobsError, match=rf"3 jobs failed: .*{tmp_path.name}', 7, 0\): ArithmeticError: sevenths"):
        evaluate_fleets({str(tmp_path): Subject.of(world, Failing(world))}, SIZES, RUNS, workers=1)
    assert lines(tmp_path) == [line for line in lines(alone) if line[1] != "7"]


def test_only_entropy_floors_are_corrected(make_world: Make, tmp_path: Path) -> None:
    """A cap on a region has no known correction: its margin counts as it is, whatever is known of the floor."""
    corner = [0, 1, 5, 6]
    tight: list[Constraint] = [EntropyFloor(0.3), RegionCapacity(corner, 0.01)]
    world = make_world(constraints=tight)
    subject = Subject.of(world, Roaming(world))
    evaluate_fleets({str(tmp_path): subject}, [500], 2, workers=1)
    for one in recorded_fleets(tmp_path, subject, "cell"):
        assert one.margin < 0 and one.corrected_margin == one.margin
        assert one.corrected_violations == one.violations == 3
    loose = make_world(constraints=[RegionCapacity(corner, 0.9)])
    subject, folder = Subject.of(loose, Roaming(loose)), tmp_path / "loose"
    folder.mkdir()
    evaluate_fleets({str(folder): subject}, [500], 2, workers=1)
    told = fleet_report(subject, recorded_fleets(folder, subject, "cell"))
    assert "no finite-sample correction is known" in told


def test_a_world_without_constraints(make_world: Make, tmp_path: Path) -> None:
    """Nothing to keep: infinite margins, no violations, and a table that says so."""
    world = make_world(constraints=[])
    subject = Subject.of(world, Roaming(world))
    evaluate_fleets({str(tmp_path): subject}, [7, 60], 2, workers=1)
    recorded = recorded_fleets(tmp_path, subject, "cell")
    assert all(one.margin == math.inf and one.violations == 0 for one in recorded)
    assert "mean field" in fleet_report(subject, recorded)


# -- what they say together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slack", [0.05, 0.15], ids=["narrow", "wide"])
def test_a_sufficient_fleet_keeps_the_floor_and_a_quarter_of_it_does_not(make_world: Make, slack: float) -> None:
    """Nearly all of 300 fleets of the reported size are without a violation; with a quarter of the taxis many have one."""
    loose = make_world()
    least = float(entropy(Subject.of(loose, Roaming(loose)).executed.mu[1:]).min())
    world = make_world(floor=(least - slack) / math.log(25))
    policy = Roaming(world)
    enough = int(sufficient_taxis(Subject.of(world, policy)))

    def kept(taxis: int) -> float:
        fleets = [FleetSimulator(world, taxis, seed=seed).rollout(policy).distributions[1:] for seed in range(300)]
        return float((world.margins(torch.stack(fleets)) >= 0).all(-1).all(-1).float().mean())

    shares = kept(enough), kept(enough // 4)
    print("enough", enough, "kept", shares)
    assert shares[0] >= 0.99 and shares[1] < 0.95


def test_the_sufficient_fleet_is_told(make_world: Make, world: TaxiMDP, alone: Path) -> None:
    """The report names it for a floor that the mean field keeps, and none where it does not, or where there is no floor."""
    subject = Subject.of(world, Roaming(world))
    report = re.sub(r"\s+", " ", fleet_report(subject, recorded_fleets(alone, subject, "cell")))
    assert f"Enough for entropy floors, to first order: {sufficient_taxis(subject):,} taxis." in report
    unsafe = make_world(floor=0.999)
    assert sufficient_taxis(Subject.of(unsafe, Roaming(unsafe))) == math.inf
    assert "there is nothing to carry over" in fleet_report(
        Subject.of(unsafe, Roaming(unsafe)), recorded_fleets(alone, subject, "cell")
    )
    free = make_world(constraints=[])
    assert math.isnan(sufficient_taxis(Subject.of(free, Roaming(free))))


def test_the_shortfall_is_that_of_samples() -> None:
    """Twenty draws per cell: the mean entropy of 2,000 samples is off by (K - 1) / (2 m), to a tenth of that."""
    cells, taxis = 25, 500
    draws = torch.distributions.Multinomial(taxis, torch.ones(cells, dtype=torch.float64))
    torch.manual_seed(0)
    short = math.log(cells) - float(entropy(draws.sample((2000,)) / taxis).mean())
    assert short == pytest.approx(entropy_bias(cells, taxis), rel=0.1)


def test_summaries_are_means_with_intervals(world: TaxiMDP, alone: Path) -> None:
    """Per size; the table for a person has a line for each, and the mean field's."""
    subject = Subject.of(world, Roaming(world))
    recorded = recorded_fleets(alone, subject, "cell")
    found = summarized(recorded)
    assert [(size.taxis, size.runs) for size in found] == [(size, RUNS) for size in SIZES]
    kept = [share_of([one.violations == 0 for one in recorded if one.taxis == size]) for size in SIZES]
    assert [size.kept for size in found] == kept and kept[0].mean < 0.95 <= kept[-1].mean
    assert safe_from(found) == next(s for i, s in enumerate(SIZES) if all(share.mean >= 0.95 for share in kept[i:]))
    assert safe_from(found[:1]) is None
    assert safe_from([found[-1], found[0], found[-1]]) == SIZES[-1]  # a good size below a bad one does not count
    for size in found:
        rewards = [one.reward for one in recorded if one.taxis == size.taxis]
        assert size.reward == estimate(rewards)
        assert size.reward.mean == pytest.approx(sum(rewards) / RUNS)
        assert size.reward.low < size.reward.mean < size.reward.high
        assert math.isnan(size.kept_corrected.mean) == (size.taxis < 25)
    table = [re.split(r"\s{2,}", line.strip()) for line in fleet_report(subject, recorded).splitlines()]
    assert [row[0] for row in table[:5]] == ["taxis", "7", "60", "500", "mean field"]
    served, empty = table[0].index("served"), table[0].index("empty km")
    for row, size in zip(table[1:4], found, strict=True):
        assert row[served] == f"{100 * size.served_demand.mean:.1f} %" and row[empty] == f"{size.empty_km.mean:.2f}"


def test_intervals_are_those_of_the_textbook() -> None:
    """Student's for a mean, Wilson's for a share; one value has no interval."""
    assert estimate([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 2.4841, 2.0 + 2.4841, 3), abs=1e-3)
    assert estimate([5.0]).mean == 5.0 and math.isnan(estimate([5.0]).low)
    assert estimate([math.inf] * 2).mean == math.inf and math.isnan(estimate([math.inf] * 2).low)
    assert share_of([True] * 10) == pytest.approx((1.0, 0.7225, 1.0, 10), abs=1e-3)


# -- from the shell -------------------------------------------------------------------------------------------------------

SMALL = [
    *("--cells", "5", "--horizon", "3", "--noise-std", "0.1", "--entropy-floor", "0.8", "--model", "known"),
    *("--bptt.epochs", "4", "--episodes", "1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    main(["train", *SMALL, "--out", str(folder)])
    return folder


@pytest.mark.parametrize(("workers", "stop"), [(1, signal.SIGKILL), (2, signal.SIGINT)], ids=["kill", "ctrl-c"])
def test_resume(run: Path, tmp_path: Path, workers: int, stop: signal.Signals) -> None:
    """Killed, or stopped by Ctrl-C with its workers: the same command completes the table, and nothing is there twice."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for folder in (stopped, whole):
        shutil.copytree(run, folder)
    options = ["--taxis", "50", "20000", "--runs", "40"]
    command = [sys.executable, "-m", "safe_m3_agent.cli", "fleet", str(stopped), *options, "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # A session of its own: Ctrl-C reaches all processes of a terminal's, and is not to reach this one. Tests that run in the
    # background of a shell ignore it, and so would what they start.
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (stopped / FLEET_FILE).exists() and len((stopped / FLEET_FILE).read_bytes().splitlines()) > 10:
                break
            time.sleep(0.01)
        os.killpg(process.pid, stop)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 1), error
    assert "Traceback" not in error and ("the same command goes on" in error) == (stop == signal.SIGINT)
    text = (stopped / FLEET_FILE).read_text()
    assert 10 <= text.count("\n") - 1 < 80
    for folder in (stopped, whole):
        main(["fleet", str(folder), *options, "--workers", "1"])
    assert (stopped / FLEET_FILE).read_text().startswith(text[: text.rfind("\n") + 1])
    assert lines(stopped) == lines(whole) and len(lines(stopped)) == 80


def test_several_runs_and_sizes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One table and one set of pictures per run; a second call reads what is there."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.copytree(run, folder)
    main(["fleet", *map(str, folders), "--taxis", "10", "100", "--runs", "2", "--workers", "1", "--seed", "5"])
    shown = capsys.readouterr().out
    for folder in folders:
        assert str(folder / FLEET_FILE) in shown
        for name in ("fleet_100", "fleet_episode", "fleet_sizes"):
            assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
            assert (folder / "figures" / f"{name}.csv").exists()
        assert [line[1:3] for line in lines(folder)] == [["10", "5"], ["10", "6"], ["100", "5"], ["100", "6"]]
    assert lines(folders[0]) == lines(folders[1])


def test_mistakes_are_explained(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2; a table of another program is neither read nor overwritten."""

    def refusal(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["fleet", *arguments])
        assert caught.value.code == 2
        return capsys.readouterr().err

    assert "taxis must be an integer >= 1, got 0" in refusal(str(run), "--taxis", "0")
    assert "runs must be an integer >= 1, got 0" in refusal(str(run), "--runs", "0")
    assert "workers must be an integer >= 1, got 0" in refusal(str(run), "--workers", "0")
    assert "none twice" in refusal(str(run), str(run))
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / FLEET_FILE).write_text("a,b\n1,2\n")
    assert "is no table of fleets: move it elsewhere" in refusal(str(other), "--taxis", "10")
    assert (other / FLEET_FILE).read_text() == "a,b\n1,2\n"
    before = "policy,resolution,taxis,seed,reward,kl,occupied,travelled_km\nab,cell,10,0,-1.0,0.1,0.2,0.3\n"
    (other / FLEET_FILE).write_text(before)
    error = refusal(str(other), "--taxis", "10")
    assert "an earlier version wrote" in error and "served_demand" in error and "Move it elsewhere" in error
    assert (other / FLEET_FILE).read_text() == before
