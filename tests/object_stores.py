"""Real object stores on this machine, and a wire to them that can be slow, cut or noisy."""

from __future__ import annotations

import re
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import google.auth.credentials
from gcp_storage_emulator.server import create_server
from google.cloud import storage
from moto.server import ThreadedMotoServer

from tests.mlflow_server import free_port

MIB = 2**20

_session = boto3.Session()  # making one takes longer than most tests


class Wire:
    """A TCP proxy in front of a server.

    Attributes:
        bytes_per_s: what comes through; None: everything at once.
        noise: bytes that come out as others, so many times.
        cut_after: bytes that come through before the connection breaks, once.
        came: bytes that came from the server.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname, parts.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.bytes_per_s: float | None = None
        self.noise: tuple[bytes, bytes, int] | None = None
        self.cut_after: int | None = None
        self.came = 0
        self._asked: list[bytearray] = []  # one for each connection
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def requests(self) -> list[str]:
        """Every request's head, up to now, in the order of the connections."""
        head = re.compile(r"^[A-Z]+ \S+ HTTP/1.1\r\n.*?\r\n\r\n", re.MULTILINE | re.DOTALL)
        return [found for asked in self._asked for found in head.findall(asked.decode("latin1"))]

    def of(self, method: str, path: str) -> list[str]:
        return [head for head in self.requests if re.match(f"{method} [^ ]*{path}", head)]

    def came_altogether(self) -> int:
        """How many bytes came, once no more do: what is on its way comes also when nobody takes it any more."""
        came = -1
        while came != self.came:
            came = self.came
            time.sleep(0.3)
        return came

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                try:
                    server = socket.create_connection(self._server)
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=self._ask, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        asked = bytearray()
        self._asked.append(asked)
        with suppress(OSError):
            while block := client.recv(65536):
                asked += block
                server.sendall(block)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError), client, server:
            while block := server.recv(65536):
                self.came += len(block)
                if self.cut_after is not None and self.came > self.cut_after:
                    self.cut_after = None
                    client.shutdown(socket.SHUT_RDWR)
                    return
                if self.noise is not None and self.noise[0] in block and self.noise[2] > 0:
                    right, wrong, times = self.noise
                    self.noise = right, wrong, times - 1
                    block = block.replace(right, wrong)
                client.sendall(block)
                if self.bytes_per_s is not None:
                    time.sleep(len(block) / self.bytes_per_s)


class Bucket(ABC):
    """A bucket of its own in a real store behind a wire.

    Attributes:
        key: of the parameters that names a folder in it.
        environment: what a process needs to reach it.
    """

    key: str
    scheme: str

    def __init__(self, server: str, environment: Mapping[str, str]) -> None:
        self.name = f"models-{uuid4().hex[:12]}"
        self.wire = Wire(server)
        self.environment = {name: value.format(wire=self.wire.address) for name, value in environment.items()}

    def uri(self, path: str) -> str:
        return f"{self.scheme}://{self.name}/{path}"

    def fill(self, path: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.put(f"{path}/{name}", content)

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Write an object."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object."""


class S3Bucket(Bucket):
    key, scheme = "s3_path", "s3"

    def __init__(self, server: str) -> None:
        keys = {
            "AWS_ACCESS_KEY_ID": "the-key",
            "AWS_SECRET_ACCESS_KEY": "the-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        super().__init__(server, {**keys, "AWS_ENDPOINT_URL": "{wire}"})
        named = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "endpoint_url": server}
        self.client = _session.client("s3", "us-east-1", **named)
        self.client.create_bucket(Bucket=self.name)

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)


class GoogleBucket(Bucket):
    key, scheme = "gcp_path", "gs"

    def __init__(self, server: str) -> None:
        super().__init__(server, {"STORAGE_EMULATOR_HOST": "{wire}"})
        nobody = google.auth.credentials.AnonymousCredentials()
        # Over the wire too: the emulator answers later under the address that a file was uploaded to.
        client = storage.Client("tests", nobody, client_options={"api_endpoint": self.wire.address})
        self.bucket = client.create_bucket(self.name)

    def put(self, key: str, content: bytes) -> None:
        self.bucket.blob(key).upload_from_string(content, "application/octet-stream")

    def delete(self, key: str) -> None:
        self.bucket.blob(key).delete()


@contextmanager
def moto_server() -> Iterator[str]:
    """Run moto's S3 and return its address."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextmanager
def google_emulator() -> Iterator[str]:
    """Run an emulator of Google's store and return its address."""
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def contents(directory: Path) -> dict[str, bytes]:
    """Read all files of a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
