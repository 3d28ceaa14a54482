"""An open loop: requests leave at fixed times, whether or not earlier ones have been answered.

Latency counts from the time at which a request should have left. A closed loop would stop asking while the server
hangs, and so hardly notice.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from typing_extensions import Self

from benchmarks.endpoints import Connection


@dataclass
class Metronome:
    """Asks the same of one path, over several connections in turn.

    Attributes:
        port: of the server.
        path: where requests go.
        body: of each.
        headers: of each.
        interval_s: between two requests.
        connections: how many requests may wait at a time.
        samples: pairs of planned departure (``time.monotonic``) and latency in milliseconds.
        errors: answers other than 200.
    """

    port: int
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    interval_s: float = 0.005
    connections: int = 4
    samples: list[tuple[float, float]] = field(default_factory=list)
    errors: int = 0

    def __enter__(self) -> Self:
        """Start asking."""
        self._ended = threading.Event()
        begin = time.monotonic() + 0.1
        self._pool = ThreadPoolExecutor(self.connections)
        planned = [begin + number * self.interval_s for number in range(self.connections)]
        self._asking = [self._pool.submit(self._ask, each) for each in planned]
        return self

    def __exit__(self, *_: object) -> None:
        """Stop asking, and wait for the last answers; a connection that broke raises here."""
        self._ended.set()
        self._pool.shutdown()
        for asking in self._asking:
            asking.result()

    def between(self, begin: float, end: float) -> list[float]:
        """Return the latencies of the requests that should have left in this time, in milliseconds."""
        return [latency for planned, latency in list(self.samples) if begin <= planned < end]

    def _ask(self, planned: float) -> None:
        with closing(Connection(self.port)) as connection:
            while not self._ended.is_set():
                time.sleep(max(planned - time.monotonic(), 0))
                status, _ = connection.post(self.path, self.body, self.headers)
                self.samples.append((planned, (time.monotonic() - planned) * 1000))
                self.errors += status != 200
                planned += self.interval_s * self.connections
