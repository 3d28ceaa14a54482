"""A session of processes: whatever a process of a session of its own has started, and how it is ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import psutil

#: How often processes are ended that somebody still starts; one that cannot be ended is given up then.
_KILLS = 10


def living(leader: int) -> Iterator[psutil.Process]:
    """Find the living processes of a session: Ray gives its workers process groups of their own, but not sessions."""
    for each in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, OSError):
            if os.getsid(each.pid) == leader and each.status() != psutil.STATUS_ZOMBIE:
                yield each


def end(leader: int) -> None:
    """End all processes of a session at once."""
    # While one process is ended, another may start a further one.
    for _ in range(_KILLS):
        left = list(living(leader))
        if not left:
            return
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, timeout=5)
