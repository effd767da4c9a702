"""Where a number comes from: machine, its load, versions, commit."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import mf_taxi_env
from safe_m3_agent.jobs import cpus

#: What a run's numbers may depend on.
PACKAGES = (
    "torch", "numpy", "scipy", "gymnasium", "cvxpy", "clarabel", "gpytorch", "linear-operator", "POT", "stable-baselines3",
)  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """What a process computes on.

    Args:
        device: Where its tensors live.

    Returns:
        ``cpu`` (model), ``cores`` (that this process may use), ``threads`` (of torch), ``device``, and ``system``.
    """
    on_gpu = device.type == "cuda"
    return {
        "cpu": _cpu_model(),
        "cores": cpus(),
        "threads": torch.get_num_threads(),
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if on_gpu else device.type,
        "system": platform.system(),
    }


def load() -> list[float] | None:
    """Processes that want to compute on this machine, others' too: means over 1, 5 and 15 minutes; None where nobody counts."""
    try:
        return list(os.getloadavg())
    except (AttributeError, OSError):  # not on every system
        return None


def reference_seconds() -> float:
    """Seconds that a fixed computation takes here and now, on the CPU: what the seconds of a run are worth beside another's.

    Products of matrices and many small operations, as learning is made of; the median of three.
    """
    matrix, vector = torch.ones(256, 256), torch.ones(64)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(100):
            matrix @ matrix
        for _ in range(10_000):
            vector + vector
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python, of this project and of :data:`PACKAGES`; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "safe-m3-taxi": mf_taxi_env.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


@cache
def commit() -> str | None:
    """The commit that this package is checked out at, ``" with changes"`` behind it where files differ; None elsewhere."""
    folder = Path(__file__).resolve().parent
    # A package that is installed into somebody else's checkout is not part of that.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return head and f"{head}{' with changes' if changes else ''}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
