"""Processes that share one artifact cache and do as they are told, one thing after another."""

from __future__ import annotations

import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlflow

from registry_serve.downloaders import ArtifactCache, size_of
from registry_serve.policies import RegistryAddress
from registry_serve.registry import Registry

# One process imports everything and is forked for each worker: starting one then takes milliseconds.
_started = multiprocessing.get_context("forkserver")
_started.set_forkserver_preload(["tests.artifact_workers"])

#: Bytes of each of a model's two files.
HALF = 1000


def fill(name: str, directory: Path, half: int = HALF) -> None:
    """Write what a model of this name consists of."""
    (directory / "data").mkdir()
    (directory / "MLmodel").write_bytes(name[-1:].encode() * half)
    (directory / "data" / "weights").write_bytes(name[-1:].encode() * half)


def is_whole(name: str, directory: Path, half: int = HALF) -> bool:
    """Say whether a directory has all that a model of this name consists of."""
    files = (directory / "MLmodel", directory / "data" / "weights")
    return all(file.is_file() and file.read_bytes() == name[-1:].encode() * half for file in files)


def limit_file_size(limit: int) -> None:
    """Let the kernel refuse to write larger files in this process, as a quota does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class _Desk:
    """What a worker can be told."""

    def __init__(self, pipe: Connection, root: Path, max_bytes: int | None, quota: int | None, half: int) -> None:
        self.cache = ArtifactCache(root, max_bytes)
        self.held: dict[str, Any] = {}
        self.downloads: list[str] = []
        self.quota, self.half, self.pipe = quota, half, pipe

    def fetch(self, name: str) -> Path:
        self.held[name] = self.cache.fetch(name, lambda directory: self._download(name, directory))
        return self.held[name].directory

    def release(self, name: str) -> None:
        self.held.pop(name).release()

    def is_whole(self, name: str) -> bool:
        return is_whole(name, self.held[name].directory, self.half)

    def count(self) -> list[str]:
        return self.downloads

    def fetch_and_hang(self, name: str) -> None:
        def hang(directory: Path) -> None:
            fill(name, directory)
            self.pipe.send("downloading")
            time.sleep(600)

        self.cache.fetch(name, hang)

    def fetch_at_random(self, seed: int, names: list[str], rounds: int) -> int:
        """Fetch and release, two at a time; return how often a model was not whole, at first or at last."""
        chosen, broken = random.Random(seed), 0
        for _ in range(rounds):
            pair = chosen.sample(names, 2)
            for name in pair:
                self.fetch(name)
            broken += sum(not self.is_whole(name) for name in pair)
            for name in pair:
                broken += not self.is_whole(name)
                self.release(name)
        return broken

    def download_version(self, uri: str, model: str) -> Path:
        """Ask a real registry. The quota is then for each file."""
        if self.quota is not None:
            limit_file_size(self.quota)
        registry = Registry(RegistryAddress(uri, timeout_s=10), self.cache)
        return registry.download(registry.version(model, "1")).directory

    def load(self, directory: Path) -> None:
        mlflow.pyfunc.load_model(str(directory))

    def _download(self, name: str, directory: Path) -> None:
        self.downloads.append(name)
        if self.quota is not None:
            limit_file_size(max(0, self.quota - size_of(self.cache.root) - self.half))
        fill(name, directory, self.half)


def _work(pipe: Connection, temporary: Path | None, *cache: Any) -> None:
    if temporary is not None:
        tempfile.tempdir = str(temporary)
    desk = _Desk(pipe, *cache)
    while True:
        try:
            command, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(desk, command)(*arguments)
        except Exception as error:  # noqa: BLE001 - raised again where it was told
            answer = error
        if desk.quota is not None:
            limit_file_size(resource.RLIM_INFINITY)
        pipe.send(answer)


class Worker:
    """Another process with the same artifact cache.

    ``worker.fetch("m-1")`` and the other methods of the desk do it there, and raise here what they raise there.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int | None = None,
        *,
        quota: int | None = None,
        half: int = HALF,
        temporary: Path | None = None,
    ) -> None:
        self.pipe, theirs = _started.Pipe()
        told = (theirs, temporary, root, max_bytes, quota, half)
        self._process = _started.Process(target=_work, args=told, daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, command: str, *arguments: Any) -> None:
        """Begin something without waiting for its end."""
        self.pipe.send((command, arguments))

    def answer(self) -> Any:
        """Wait for the end of what was begun."""
        assert self.pipe.poll(60), "the worker does not answer"
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __getattr__(self, command: str) -> Callable[..., Any]:
        def do(*arguments: Any) -> Any:
            self.tell(command, *arguments)
            return self.answer()

        return do

    def kill(self) -> None:
        """End it as the out-of-memory killer does."""
        self._process.kill()
        self._process.join(30)
        self.pipe.close()
