"""Processes that download one model each, as replicas do."""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from registry_serve.downloaders import Download, Progress, fetch
from registry_serve.errors import RegistryServeError

# One process imports everything and is forked for each worker: starting one then takes milliseconds.
_started = multiprocessing.get_context("forkserver")
_started.set_forkserver_preload(["tests.download_workers"])


def _work(pipe: Connection, environment: Mapping[str, str], download: Download, code: Path | None) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_", "STORAGE_"))]:
        del os.environ[name]  # of the test that started the server of these processes
    os.environ.update(environment)
    if code is not None:
        sys.path.insert(0, str(code))
    warnings = logging.handlers.BufferingHandler(1000)
    logging.getLogger("registry_serve").addHandler(warnings)
    pipe.recv()
    try:
        pipe.send(fetch(download, pipe.send))
    except RegistryServeError as error:
        pipe.send(error)
    pipe.send([record.getMessage() for record in warnings.buffer if record.levelno >= logging.WARNING])
    pipe.recv()


class Downloader:
    """Such a process; it begins when told to, and stays until it is killed."""

    def __init__(self, environment: Mapping[str, str], download: Download, code: Path | None = None) -> None:
        self._pipe, theirs = _started.Pipe()
        self._process = _started.Process(target=_work, args=(theirs, environment, download, code), daemon=True)
        self._process.start()
        theirs.close()

    def go(self) -> Downloader:
        self._pipe.send("go")
        return self

    def line(self) -> Any:
        """Wait for what it says next: its progress, at last a directory or None, or an error."""
        assert self._pipe.poll(60), "the process says nothing"
        return self._pipe.recv()

    def end(self) -> Any:
        """Wait for how it ends."""
        line = self.line()
        while isinstance(line, Progress):
            line = self.line()
        return line

    def directory(self) -> Path:
        end = self.end()
        if isinstance(end, Exception):
            raise end
        return end

    def kill(self) -> None:
        """End it as the out-of-memory killer does."""
        self._process.kill()
        self._process.join(30)
        self._pipe.close()
