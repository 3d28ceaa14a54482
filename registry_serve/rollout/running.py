"""A deployment, for those who call it from Python."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from registry_serve.errors import ConfigurationError, RegistryServeError
from registry_serve.protocols.gate import keys_in
from registry_serve.rollout import ending, records, statuses
from registry_serve.rollout.logs import logs
from registry_serve.rollout.records import Record
from registry_serve.rollout.statuses import DeploymentStatus

_PING_S = 10.0
#: HAProxy asks a new replica a few times whether it is healthy before it sends it anything.
_ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True)
class RunningDeployment:
    """A deployment and where it answers.

    Attributes:
        name: its own.
        url: without a slash at the end; ``/predict`` and ``/ping`` are below it.
        api_key_file: a file with the keys of the endpoint; the first one is sent.
    """

    name: str
    url: str
    api_key_file: str | None = field(default=None, repr=False)

    def ping(self) -> int:
        """Return the status code of ``GET /ping``: 200 when it is ready, 0 when nobody answers."""
        try:
            with self._open("/ping", None, _PING_S) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def predict(
        self, inputs: Any, parameters: Mapping[str, Any] | None = None, timeout: float = 60
    ) -> dict[str, Any] | list[Any]:
        """Return the answer to ``{"inputs": inputs, "parameters": parameters}``.

        A mapping that has ``inputs`` itself is sent as it is.

        Args:
            inputs: a list, or a single text.
            parameters: for all of them.
            timeout: in seconds.

        Raises:
            RegistryServeError: it answered with an error, or not at all.
        """
        body = dict(inputs) if isinstance(inputs, Mapping) and "inputs" in inputs else {"inputs": inputs}
        if parameters is not None:
            body["parameters"] = dict(parameters)
        try:
            with self._open("/predict", json.dumps(body).encode(), timeout) as answer:
                return cast("dict[str, Any] | list[Any]", json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise RegistryServeError(f"{self.name} answered {error.code}: {_detail(said)}") from None
        except (OSError, ValueError) as error:
            raise RegistryServeError(f"{self.url} does not answer: {getattr(error, 'reason', error)}.") from None

    def status(self) -> DeploymentStatus:
        """Return how it is.

        Raises:
            DeploymentNotFound: it was deleted.
        """
        return statuses.status(self.name)

    def logs(self, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Return what its replicas have logged, as ``logs`` does."""
        return logs(self.name, tail=tail, follow=follow)

    def stop(self) -> None:
        """Take it offline; ``update`` brings it back."""
        ending.stop(self.name)

    def delete(self) -> None:
        """Take it offline and forget it."""
        ending.delete(self.name)

    def wait_until_answering(self) -> None:
        """Wait until requests reach the replicas, which are ready.

        Raises:
            ConfigurationError: they do not.
        """
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while self.ping() != 200:
            if time.monotonic() > deadline:
                raise ConfigurationError(f"The replicas are ready, but {self.url}/ping does not answer.")
            time.sleep(0.1)

    def _open(self, path: str, body: bytes | None, timeout: float) -> Any:
        headers = {} if body is None else {"content-type": "application/json"}
        if self.api_key_file is not None:
            # A header is latin-1 to Python's client; a key is UTF-8, like its file.
            headers["authorization"] = keys_in(self.api_key_file)[0].encode().decode("latin-1")
        request = urllib.request.Request(self.url + path, data=body, headers=headers)  # noqa: S310 - http, made by us
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return direct.open(request, timeout=timeout)


def running(name: str) -> RunningDeployment:
    """Return a deployment by its name, whatever its state.

    Raises:
        DeploymentNotFound: there is none of that name.
    """
    return of(records.get(name))


def of(record: Record) -> RunningDeployment:
    """Return what a record tells of."""
    keys = record.order.api_key_file
    return RunningDeployment(record.name, record.url, keys if keys and Path(keys).exists() else None)


def _detail(said: str) -> str:
    try:
        body = json.loads(said)
    except ValueError:
        return " ".join(said.split())[:300]
    if isinstance(body, Mapping):
        return str(body.get("detail") or body.get("error") or body.get("message") or body)
    return str(body)
