"""How many requests a second are let in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from registry_serve.errors import ConfigurationError, RateLimited


class RateLimit:
    """A bucket of as many requests as one second allows, filled as time goes by. For one event loop.

    Args:
        per_second: requests; less than one allows one every so often.
        clock: seconds, monotonic.

    Raises:
        ConfigurationError: it is no number above zero.
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 < per_second < math.inf:
            raise ConfigurationError(f"rate_limit must be a number greater than 0, not {per_second}.")
        self.per_second = per_second
        self._most = max(1.0, per_second)
        self._left = self._most
        self._clock = clock
        self._filled = clock()

    def take(self) -> None:
        """Let one request in.

        Raises:
            RateLimited: there are too many.
        """
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._filled) * self.per_second)
        self._filled = now
        if self._left < 1.0:
            raise RateLimited(self.per_second, math.ceil((1.0 - self._left) / self.per_second))
        self._left -= 1.0
