"""Load on a served model: threads that ask without a pause, and what came of each of their requests."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray import serve
from typing_extensions import Self

from tests.toys import Obedient


@dataclass(frozen=True)
class Sent:
    """One request for an ``Obedient`` model, and what came of it.

    Attributes:
        version: the one asked for; empty for the default.
        began: when it was sent, on the monotonic clock.
        ended: when it was over.
        status: of the answer; 0 if none came.
        code: of one of our errors.
        retry_after: the header's seconds.
        served: the version that answered, as the answer's header says.
        text: the answer's only text, the body of any other answer, or the exception that the client raised.
    """

    version: str
    began: float
    ended: float
    status: int = 0
    code: str | None = None
    retry_after: str | None = None
    served: str | None = None
    text: str = ""

    @property
    def ok(self) -> bool:
        """Whether the model answered."""
        return self.status == 200

    @property
    def took_s(self) -> float:
        """How long the client waited."""
        return self.ended - self.began

    @property
    def tag(self) -> str:
        """Which model answered, as it says itself."""
        return self.text.split()[0]

    @property
    def pid(self) -> int:
        """The process of the replica that answered."""
        return int(self.text.split()[1])


def ask(address: str, version: str = "", prompt: str = "a", timeout: float = 60, session: Any = requests) -> Sent:
    """Send one row; whatever goes wrong is in the result."""
    began = time.monotonic()
    headers = {"serve_multiplexed_model_id": version}
    try:
        got = session.post(f"{address}/serve", json={"prompt": prompt}, headers=headers, timeout=timeout)
    except requests.RequestException as error:
        return Sent(version, began, time.monotonic(), text=repr(error))
    ended = time.monotonic()
    if got.status_code == 200:
        served = got.headers["serve-model-version"]
        return Sent(version, began, ended, 200, served=served, text=got.json()[0]["text"])
    is_ours = got.headers.get("content-type") == "application/problem+json"
    code = got.json()["code"] if is_ours else None
    return Sent(version, began, ended, got.status_code, code, got.headers.get("retry-after"), text=got.text)


class Load:
    """Clients that ask one after another, inside ``with``; each in a thread, with a connection of its own.

    Args:
        address: of the model.
        versions: which to ask for, at random.
        clients: how many ask at a time.
        prompt: the row.
        times: how many requests each sends; as many as it can if not given.
    """

    def __init__(
        self, address: str, versions: Sequence[str] = ("",), *, clients: int = 4, prompt: str = "a", times: int = 10**9
    ) -> None:
        self.sent: list[Sent] = []
        self._address, self._versions, self._prompt, self._times = address, versions, prompt, times
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self.wait()

    def wait(self) -> None:
        """Wait until every client has its last answer."""
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a request was never answered"

    @property
    def failed(self) -> list[Sent]:
        """What the model did not answer."""
        return [each for each in list(self.sent) if not each.ok]

    def since(self, moment: float) -> list[Sent]:
        """Return the requests that were sent after a moment of the monotonic clock."""
        return [each for each in list(self.sent) if each.began > moment]

    def _ask(self, seed: int) -> None:
        choice = random.Random(seed)
        with requests.Session() as session:
            for _ in range(self._times):
                if self._stopping.is_set():
                    return
                version = choice.choice(self._versions)
                self.sent.append(ask(self._address, version, self._prompt, session=session))


class Orders:
    """The folder of ``Obedient`` models, and what they noted there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "alive").mkdir(parents=True)
        (folder / "loads").touch()

    def model(self, tag: str) -> Obedient:
        """Return a model that obeys."""
        return Obedient(tag, self.folder)

    @contextmanager
    def given(self, name: str, order: str = "") -> Iterator[None]:
        """Give an order, and take it back."""
        file = self.folder / name
        file.write_text(order)
        try:
            yield
        finally:
            file.unlink()

    def loads(self, tag: str | None = None) -> int:
        """Count how often a model was loaded, or all of them."""
        lines = (self.folder / "loads").read_text().splitlines()
        return len([line for line in lines if tag is None or line.split()[0] == tag])

    def alive(self, pid: int) -> int:
        """Count the models in a process's memory."""
        return len(list((self.folder / "alive").glob(f"{pid}-*")))


@contextmanager
def served(cluster: Any, name: str, deployment: Any, **options: Any) -> Iterator[str]:
    """Serve a deployment below its name; gives its address. It stops fast, whatever hangs in it."""
    start(name, deployment, **options)
    try:
        yield f"{cluster.address}/{name}"
    finally:
        serve.delete(name)


def start(name: str, deployment: Any, **options: Any) -> None:
    """Deploy it, or what has changed of it, and wait until that has happened."""
    quick = {"health_check_period_s": 1, "graceful_shutdown_wait_loop_s": 0.2, "graceful_shutdown_timeout_s": 5}
    serve.run(deployment.options(**{**quick, **options}).bind(), name=name, route_prefix=f"/{name}")


def eventually(check: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Wait until a check returns something true, and return that."""
    deadline = time.monotonic() + within_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"still {found!r} after {within_s:g} s"
        time.sleep(0.05)


def replica(address: str) -> dict[str, Any]:
    """Return what ``/model`` tells of the replica that answers, with the states of its versions."""
    told = requests.get(f"{address}/model", timeout=30).json()
    return {**told["replica"], "states": {each["version"]: each["state"] for each in told["versions"]}}
