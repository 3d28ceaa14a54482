"""How long MLflow's HTTP client waits. Its defaults retry an unreachable server for about four minutes.

MLflow offers no time-out per call or per client: it reads environment variables at each request. So they are set
here, and only those that the user has not set:

| variable                                | set to                     | why                                          |
|-----------------------------------------|----------------------------|----------------------------------------------|
| MLFLOW_HTTP_REQUEST_TIMEOUT             | half of ``timeout_s``      | two tries fit into ``timeout_s``             |
| MLFLOW_HTTP_REQUEST_MAX_RETRIES         | 1, at once                 | a kept-alive connection may have been closed |
| MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER  | false                      | a busy server could ask us to sleep minutes  |
| MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR    | false                      | a bar in the log for each small file we read |

The time-out is for connecting and for each silence between two bytes, so it never cuts a download that flows. But
a server that proxies an object store fetches a whole file before it sends the first byte: while artifacts are
downloaded, :func:`patient_downloads` lets a silence last longer.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from registry_serve.policies import RegistryAddress

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
#: How many seconds of silence a download survives.
_DOWNLOAD_SILENCE_S = "600"

_lock = threading.Lock()
_downloads = 0  # how many are under way in this process
_short_timeout: str | None = None  # what we set the time-out to, and it comes back when the last download ends


def _settings(address: RegistryAddress) -> Mapping[str, str]:
    return {
        # MLflow reads whole seconds.
        _TIMEOUT: str(max(1, math.floor(address.timeout_s / 2))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }


def make_http_impatient(address: RegistryAddress) -> list[str]:
    """Let this process's MLflow give up on an unreachable server within about ``address.timeout_s`` seconds.

    For processes of ours, such as replicas. Variables that are set already stay as they are.

    Returns:
        The names of the environment variables that were set.
    """
    global _short_timeout
    with _lock:
        settings = {name: value for name, value in _settings(address).items() if name not in os.environ}
        os.environ.update(settings)
        if _TIMEOUT in settings:
            _short_timeout = settings[_TIMEOUT]
    return list(settings)


@contextmanager
def impatient_http(address: RegistryAddress) -> Iterator[None]:
    """Do the same for a ``with`` block, in a process that belongs to the user."""
    global _short_timeout
    ours = make_http_impatient(address)
    try:
        yield
    finally:
        with _lock:
            for name in ours:
                os.environ.pop(name, None)
            if _TIMEOUT in ours:
                _short_timeout = None


@contextmanager
def patient_downloads() -> Iterator[None]:
    """Let MLflow wait long for the next byte in this ``with`` block, unless the user has set the time-out.

    The variable is the whole process's: a question to the registry that happens to be asked meanwhile may also
    wait long, so whoever asks keeps a clock of their own (see ``Lookups``).
    """
    global _downloads
    with _lock:
        _downloads += 1
        if _short_timeout is not None:
            os.environ[_TIMEOUT] = _DOWNLOAD_SILENCE_S
    try:
        yield
    finally:
        with _lock:
            _downloads -= 1
            if _downloads == 0 and _short_timeout is not None:
                os.environ[_TIMEOUT] = _short_timeout
