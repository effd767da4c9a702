"""Files that are written whole or not at all: a full disk or a kill leaves what was there before."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Seconds for which nobody has touched a temporary file of another machine, once it is taken for a killed process's.
ABANDONED = 24 * 3600.0


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place when the block ends well, and vanishes when it does not.

    The content reaches the disk before the name does, so that not even a loss of power leaves half a file. What killed
    processes left of earlier writes to the same target is removed first.

    Args:
        target: The file to write.

    Raises:
        OSError: If the file cannot be written; ``target`` is then what it was.
    """
    _remove_left(target)
    temporary = target.with_name(f".{target.name}.{_machine()}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows flushes no file that is open for reading alone
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left(target: Path) -> None:
    """Remove a target's temporary files that nobody will finish. It is tidying up: what cannot be removed stays."""
    temporary = re.compile(re.escape(f".{target.name}.") + r"([0-9a-f]{8})\.(\d+)\.\d+\.tmp")
    with suppress(OSError):
        for path in target.parent.iterdir():
            if found := temporary.fullmatch(path.name):
                # Folders are shared: a process of another machine may live under the number of one that is dead here.
                ours = found[1] == _machine()
                if not _may_live(int(found[2])) if ours else time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """Eight digits that tell this machine, since its last start, from others; names alone are often the same."""
    started = Path("/proc/sys/kernel/random/boot_id")  # Linux
    known = platform.node() + (started.read_text() if started.is_file() else "")
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def _may_live(process: int) -> bool:
    """Whether a process of this machine is alive, or nothing is known of it."""
    if sys.platform == "win32":  # where a signal 0 is no question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        pass
    return True
