"""Jobs: the same results wherever they run, in whatever order they end, and whatever happens to a worker."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from safe_m3_agent.jobs import THREADS, Job, JobsError, Outcome, cpus, run_jobs


def noise(seed: int) -> list[float]:
    """Numbers from a seed, of a sum that more threads would round otherwise."""
    draws = torch.randn(200_000, generator=torch.Generator().manual_seed(seed))
    return [float(draws.sum()), float(torch.get_num_threads())]


def reciprocal(value: float) -> float:
    """Fails at zero."""
    return 1.0 / value


def scaled(factor: float, value: float) -> float:
    """With an argument that all jobs share."""
    return factor * value


def die(marker: Path, times: int, parent: int) -> str:
    """Take the worker along, the first times it is called."""
    assert os.getpid() != parent
    deaths = len(list(marker.parent.glob(f"{marker.name}*")))
    if deaths < times:
        marker.with_name(f"{marker.name}{deaths}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"alive after {deaths}"


def with_a_child(code: int) -> int | None:
    """Starts a process of its own, as vector envs and data loaders do."""
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=(code,))
    child.start()
    child.join()
    return child.exitcode


def unsettle() -> tuple[int, str]:
    """Its process, and what it finds there before it leaves a mess."""
    found = os.getpid(), str(torch.get_default_dtype())
    torch.set_default_dtype(torch.float64)
    return found


def threads() -> list[str | None]:
    """What libraries are told when they are loaded."""
    return [os.environ.get(name) for name in THREADS]


#: A program with two jobs at work, each with a child, that ends in several ways.
PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from safe_m3_agent.jobs import Job, run_jobs

def work(folder, number):
    if number:
        subprocess.Popen(["sleep", "600"], pass_fds=[os.open(folder / "alive", os.O_WRONLY)])
        (folder / str(number)).touch()
        time.sleep(600)

if __name__ == "__main__":
    folder, way = Path(sys.argv[1]), sys.argv[2]
    outcomes = run_jobs([Job(number, work, (folder, number)) for number in range(3)], workers=2)
    next(outcomes)
    while len(list(folder.glob("[12]"))) < 2:
        time.sleep(0.05)
    if way == "leave":
        outcomes.close()
    (folder / "ready").touch()
    if way == "raise":
        raise ArithmeticError("with an iterator that nobody closes")
    time.sleep(600)
"""


def results(outcomes: Iterator[Outcome]) -> dict[object, object]:
    """Values by key; nothing may have failed, or come twice."""
    listed = list(outcomes)
    assert [outcome.error for outcome in listed] == [None] * len(listed)
    found = {outcome.key: outcome.value for outcome in listed}
    assert len(found) == len(listed)
    return found


JOBS = [Job(("noise", seed), noise, (seed,)) for seed in range(6)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A local Ray cluster of two workers."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield "auto"
    ray.shutdown()


def test_one_process_and_two_give_the_same(tmp_path: Path) -> None:
    """Bit for bit, each job with one thread; the caller's own threads are what they were."""
    torch.set_num_threads(2)
    try:
        alone = results(run_jobs(JOBS, workers=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert alone.keys() == {job.key for job in JOBS}
    assert results(run_jobs(JOBS, workers=2)) == alone
    assert not multiprocessing.active_children()


def test_ray_gives_the_same(cluster: str) -> None:
    """A cluster changes nothing, and one that was there before goes on."""
    import ray

    assert results(run_jobs(JOBS, ray=cluster)) == results(run_jobs(JOBS, workers=1))
    assert ray.is_initialized()


@pytest.mark.parametrize("where", ["here", "processes", "ray"])
def test_an_exception_ends_its_own_job_alone(where: str, request: pytest.FixtureRequest) -> None:
    """It is told with the job's key, and the others' results are there."""
    ray = request.getfixturevalue("cluster") if where == "ray" else None
    jobs = [*(Job(value, reciprocal, (value,)) for value in (1.0, 0.0, 4.0)), Job("exit", sys.exit, (3,))]
    outcomes = {outcome.key: outcome for outcome in run_jobs(jobs, workers=1 if where == "here" else 2, ray=ray)}
    assert (outcomes[1.0].value, outcomes[4.0].value) == (1.0, 0.25)
    assert outcomes[0.0].value is None and "ZeroDivisionError" in (outcomes[0.0].error or "")
    assert "SystemExit: 3" in (outcomes["exit"].error or "")
    assert str(JobsError([outcomes[0.0]])) == "1 jobs failed: 0.0: ZeroDivisionError: float division by zero"


@pytest.mark.parametrize("where", ["processes", "ray"])
def test_jobs_of_a_lost_worker_are_tried_again(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Once lost, then done; lost again and again is reported, and no other job is."""
    ray = request.getfixturevalue("cluster") if where == "ray" else None
    jobs = [
        Job("once", die, (tmp_path / "once", 1, os.getpid())),
        Job("always", die, (tmp_path / "always", 9, os.getpid())),
        *JOBS,
    ]
    outcomes = {outcome.key: outcome for outcome in run_jobs(jobs, workers=2, ray=ray, retries=1)}
    assert outcomes.keys() == {job.key for job in jobs}
    assert outcomes["once"] == Outcome("once", "alive after 1")
    assert outcomes["always"].value is None and outcomes["always"].error
    assert len(list(tmp_path.glob("always*"))) == 2
    assert all(outcomes[job.key].error is None for job in JOBS)
    if where == "processes":
        assert "lost 2 times, last with exit code -9" in outcomes["always"].error


@pytest.mark.parametrize("where", ["processes", "ray"])
def test_isolated_jobs_share_no_process(where: str, request: pytest.FixtureRequest) -> None:
    """Not one after the other either, with a single worker, nor with this process; one that ends its own ends no other."""
    ray = request.getfixturevalue("cluster") if where == "ray" else None
    jobs = [*([] if ray else [Job("gone", os._exit, (7,))]), *(Job(i, unsettle) for i in range(3 if ray else 2))]
    outcomes = {outcome.key: outcome for outcome in run_jobs(jobs, workers=1, ray=ray, retries=0, isolated=True)}
    assert outcomes.keys() == {job.key for job in jobs}
    found = [outcome.value for key, outcome in outcomes.items() if key != "gone"]
    assert len({process for process, _ in found} | {os.getpid()}) == len(found) + 1
    assert {dtype for _, dtype in found} == {"torch.float32"} == {str(torch.get_default_dtype())}
    assert ray or outcomes["gone"].error == "its worker was lost 1 times, last with exit code 7"


def test_shared_arguments_come_first() -> None:
    """All jobs have them, in this process and in others."""
    jobs = [Job(value, scaled, (value,)) for value in (1.0, 2.0)]
    for workers in (1, 2):
        assert results(run_jobs(jobs, shared=(3.0,), workers=workers)) == {1.0: 3.0, 2.0: 6.0}


def test_what_cannot_be_sent_is_reported() -> None:
    """A function that pickle does not know, and a result that it cannot bring back."""
    jobs = [Job("lambda", lambda: 1), Job("result", eval, ("lambda: 0",)), *JOBS[:1]]
    outcomes = {outcome.key: outcome for outcome in run_jobs(jobs, workers=2)}
    assert "pickle" in (outcomes["lambda"].error or "") and "pickle" in (outcomes["result"].error or "")
    assert outcomes[JOBS[0].key].error is None


def test_leaving_early_ends_the_workers() -> None:
    """As Ctrl-C does: no process goes on for nobody."""
    outcomes = run_jobs(JOBS, workers=2)
    next(outcomes)
    assert multiprocessing.active_children()
    outcomes.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("way", ["leave", "raise", "kill"])
def test_nothing_outlives_the_jobs(way: str, tmp_path: Path) -> None:
    """However they end: workers end, and so do the processes that jobs have started. All of them hold a pipe open till then."""
    os.mkfifo(tmp_path / "alive")
    pipe = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), way]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as program:
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "ready").exists():
                assert program.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            if way == "kill":
                program.kill()
            assert select.select([pipe], [], [], 60)[0] and os.read(pipe, 1) == b""
            assert way == "leave" or program.wait(60) == {"raise": 1, "kill": -9}[way]
        finally:
            program.kill()
            os.close(pipe)


def test_jobs_may_start_processes() -> None:
    """As many algorithms do, which daemons must not."""
    jobs = [Job(code, with_a_child, (code,)) for code in (0, 3)]
    assert results(run_jobs(jobs, workers=2)) == {0: 0, 3: 3}
    assert not multiprocessing.active_children()


def test_workers_are_told_to_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they load a library that asks; here nothing changes."""
    monkeypatch.setenv(THREADS[0], "7")
    monkeypatch.delenv(THREADS[1], raising=False)
    before = threads()
    assert results(run_jobs([Job(i, threads) for i in range(2)], workers=2)) == dict.fromkeys(range(2), ["1"] * len(THREADS))
    assert threads() == before
    assert 1 <= cpus() <= (os.cpu_count() or 1)


def test_no_jobs_no_outcomes() -> None:
    """Nothing to do is done at once."""
    assert list(run_jobs([], workers=2)) == [] and list(run_jobs([], workers=1)) == []


def test_mistakes_are_named() -> None:
    """Before anything runs."""
    with pytest.raises(ValueError, match=r"keys of their own, got 'a' twice"):
        run_jobs([Job("a", reciprocal, (1.0,)), Job("a", reciprocal, (2.0,))])
    with pytest.raises(ValueError, match="workers must be an integer >= 1, got 0"):
        run_jobs(JOBS, workers=0)
    with pytest.raises(ValueError, match="retries must be an integer >= 0, got -1"):
        run_jobs(JOBS, retries=-1)
