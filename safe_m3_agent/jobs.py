"""Independent jobs on local processes or on a Ray cluster: the same results either way, and a lost worker loses none."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch

from mf_taxi_env.checks import whole_number

#: How often a job is given to another worker after one was lost with it.
RETRIES = 2
#: Address of a Ray cluster that is started for the jobs and ends with them.
LOCAL_RAY = "local"
#: Where libraries look for their number of threads when they are loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def cpus() -> int:
    """CPUs that this process may use, at least 1."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


class Job(NamedTuple):
    """One call, independent of all others: whatever is random in it comes from a seed among its arguments."""

    key: Hashable  #: what the result is known by; no two jobs share one
    function: Callable[..., Any]  #: importable by its name, as pickle wants it
    arguments: tuple[Any, ...] = ()


class Outcome(NamedTuple):
    """What became of a job."""

    key: Hashable
    value: Any  #: what the function returned; None where it failed
    error: str | None = None  #: why it failed: a traceback, or that its workers were lost


class JobsError(RuntimeError):
    """Some jobs failed; the others' results are there."""

    def __init__(self, failed: Sequence[Outcome]) -> None:
        reasons = [f"{outcome.key}: {(outcome.error or '').strip().splitlines()[-1]}" for outcome in failed]
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        super().__init__(f"{len(failed)} jobs failed: {'; '.join(reasons[:3])}{more}")
        self.failed = list(failed)


def run_jobs(
    jobs: Sequence[Job],
    *,
    shared: tuple[Any, ...] = (),
    workers: int | None = None,
    ray: str | None = None,
    retries: int = RETRIES,
    isolated: bool = False,
) -> Iterator[Outcome]:
    """Run jobs and yield what became of each as soon as it is known, in no particular order.

    Every job has one thread, wherever it runs, so that its numbers do not depend on where that is. An exception, or
    ``sys.exit``, ends its own job alone. Where the iteration is left early, by Ctrl-C for instance, or this process is killed,
    what still runs is ended, with all processes that jobs have started.

    Args:
        jobs: The jobs.
        shared: First arguments of all jobs, sent to each worker once.
        workers: Processes, at least 1; 1 is this very process, in which libraries other than torch keep their threads, unless
            ``isolated``. Default: one per CPU that this process may use. On a cluster that is running already its own CPUs
            count, and this does not.
        ray: Address of a Ray cluster, such as ``"auto"`` or ``"10.0.0.1:6379"``, or ``"local"`` for one that is started here
            with ``workers`` CPUs. Default: no Ray.
        retries: How often a job is tried again whose worker was lost.
        isolated: Whether each job has a process of its own, new, that ends with it: nothing that a job does to its process,
            such as a default of torch, reaches another. It starts and imports anew each time.

    Yields:
        One outcome per job.

    Raises:
        ValueError: If an argument is out of range, or two jobs share a key.
        ImportError: If Ray is asked for and not installed (extra ``ray``).
        ConnectionError: If there is no cluster at the address.
    """
    workers = whole_number("workers", workers if workers is not None else cpus(), least=1)
    whole_number("retries", retries, least=0)
    if len({job.key for job in jobs}) < len(jobs):
        twice = next(job.key for i, job in enumerate(jobs) if job.key in {other.key for other in jobs[:i]})
        raise ValueError(f"jobs must have keys of their own, got {twice!r} twice")
    if ray is not None:
        return _on_ray(jobs, shared, ray, workers, retries, isolated)
    if workers == 1 and not isolated:
        return (_call(job, shared) for job in jobs)
    return _on_processes(jobs, shared, min(workers, len(jobs)), retries, isolated)


def _call(job: Job, shared: tuple[Any, ...]) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over more threads are rounded otherwise
    try:
        return Outcome(job.key, job.function(*shared, *job.arguments))
    except (Exception, SystemExit):  # a job that exits is not to end the others
        return Outcome(job.key, None, traceback.format_exc())
    finally:
        torch.set_num_threads(threads)


# -- local processes ------------------------------------------------------------------------------------------------------


class _Worker:
    """A process with one job at a time, so that it is known which one is lost with it.

    It is no daemon, which could start no processes of its own, as a job may want to (``SubprocVecEnv``, a ``DataLoader``). It
    leads a process group instead, that is ended with it; and it ends that itself as soon as this process is gone.
    """

    def __init__(self, shared: bytes, job: Job, pickled: bytes) -> None:
        # Spawned: a fork would inherit the locks of this process' threads.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, shared), daemon=False)
        with _without_interrupts(), _one_thread():  # both of which the process inherits
            self.process.start()
            # Also at Python's exit, which waits for all processes that are no daemons, if nobody has ended it until then.
            self._end = Finalize(self, _end_group, args=(self.process,), exitpriority=10)
        theirs.close()
        self.give(job, pickled)

    def give(self, job: Job, pickled: bytes) -> None:
        self.job = job
        with contextlib.suppress(OSError):  # the worker is gone: what it leaves at the other end tells so
            self.pipe.send_bytes(pickled)

    def end(self, grace: float = 0.0) -> int | None:
        """Its exit code, negative where a signal ended it: ours, unless it ends by itself in time."""
        self.process.join(grace)
        self._end()
        self.pipe.close()
        return self.process.exitcode


def _end_group(process: BaseProcess) -> None:
    """End a worker and all that it started."""
    if sys.platform != "win32" and process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # none yet, or nobody left in it
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What is started meanwhile has one thread in every library that reads its number when it is loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """What is started meanwhile ignores Ctrl-C from its first instruction on: the first process decides; ours comes afterwards.

    Only the main thread may choose what a signal does; elsewhere, and on Windows, a worker ignores it once it is prepared.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _follow() -> None:
    """Wait for the end of the process that started this one; then end this one, and all that it started."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if sys.platform != "win32":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _serve(pipe: Connection, pickled: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_follow, daemon=True).start()  # a job may take hours, and nobody would want its result
    shared = None
    with contextlib.suppress(EOFError, OSError):  # nobody is left to work for
        while True:
            received = pipe.recv_bytes()
            try:
                shared = pickle.loads(pickled) if shared is None else shared
                answer = pickle.dumps(_call(pickle.loads(received), shared))
            except Exception:  # what was sent, or what came out, cannot be pickled
                answer = pickle.dumps(Outcome(None, None, traceback.format_exc()))
            pipe.send_bytes(answer)


def _on_processes(jobs: Sequence[Job], shared: tuple[Any, ...], count: int, retries: int, isolated: bool) -> Iterator[Outcome]:
    common, waiting = pickle.dumps(shared), deque[tuple[Job, bytes]]()
    for job in jobs:
        try:
            waiting.append((job, pickle.dumps(job)))
        except Exception:  # of many kinds: pickle calls the arguments' own code
            yield Outcome(job.key, None, traceback.format_exc())
    sent, lost = {job.key: pickled for job, pickled in waiting}, dict.fromkeys((job.key for job, _ in waiting), 0)
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < count:
                workers.append(_Worker(common, *waiting.popleft()))
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(worker for worker in workers if worker.pipe is pipe)
                job = worker.job
                try:
                    outcome: Outcome = pickle.loads(worker.pipe.recv_bytes())._replace(key=job.key)
                except (EOFError, OSError):  # killed: nothing, or half an answer, has arrived
                    workers.remove(worker)
                    code = worker.end(grace=1.0)
                    lost[job.key] += 1
                    if lost[job.key] <= retries:
                        waiting.append((job, sent[job.key]))
                        continue
                    outcome = Outcome(job.key, None, f"its worker was lost {lost[job.key]} times, last with exit code {code}")
                else:
                    if waiting and not isolated:
                        worker.give(*waiting.popleft())
                    else:
                        workers.remove(worker)
                        worker.end()
                yield outcome
    finally:
        for worker in workers:
            worker.end()


# -- a Ray cluster --------------------------------------------------------------------------------------------------------


def _on_ray(
    jobs: Sequence[Job], shared: tuple[Any, ...], address: str, workers: int, retries: int, isolated: bool
) -> Iterator[Outcome]:
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ImportError(f"{error}; Ray is in the extra 'ray': pip install 'safe-m3-taxi[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        own = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL_RAY else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    try:
        # An exception is caught by _call: what Ray retries is a job whose worker, or machine, was lost.
        remote = ray.remote(num_cpus=1, max_retries=retries, max_calls=int(isolated))(_call)  # 0: as many as there are
        common = ray.put(shared)
        pending = {remote.remote(job, common): job.key for job in jobs}
        try:
            while pending:
                for done in ray.wait(list(pending), num_returns=1)[0]:
                    key = pending.pop(done)
                    try:
                        yield ray.get(done)
                    except RayError as error:
                        yield Outcome(key, None, f"{type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            for left in pending:
                ray.cancel(left, force=True)
    finally:
        if ours:
            ray.shutdown()
