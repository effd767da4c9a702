"""Files that are written whole or not at all: a full disk or a kill leaves what was there before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place when the block ends well, and vanishes when it does not.

    The content reaches the disk before the name does, so that not even a loss of power leaves half a file.

    Args:
        target: The file to write.

    Raises:
        OSError: If the file cannot be written; ``target`` is then what it was.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
