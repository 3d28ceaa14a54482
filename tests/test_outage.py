"""The registry goes away and comes back: a real MLflow server over http, stopped, hung and started again."""

import asyncio
import json
import time

import pytest

from registry_serve.errors import RegistryUnavailable
from registry_serve.policies import RegistryAddress
from registry_serve.registry import impatient_http
from tests.mlflow_server import shared_server
from tests.toys import Shelf, Shout

pytestmark = pytest.mark.slow


async def ask(plane, reference):
    answer = await plane.predict(reference, b'{"prompt": "a"}')
    return json.loads(answer.body)[0]["text"]


@pytest.fixture
def far(tmp_path, monkeypatch):
    """A server with three versions, and a cache folder for what is downloaded from it."""
    monkeypatch.setenv("REGISTRY_SERVE_ARTIFACTS", str(tmp_path / "cache"))
    server = shared_server()
    shelf = Shelf(tmp_path, server.uri, experiment=f"outage {tmp_path.name}")
    for tag in ("one", "two", "three"):
        shelf.log("outage", Shout(tag))
    shelf.alias("outage", "second", "2")
    yield server
    server.start()
    shelf.client.delete_registered_model("outage")


async def test_loaded_versions_keep_answering_while_the_registry_is_away(plane, far):
    with impatient_http(RegistryAddress(far.uri, timeout_s=3.0)):
        async with plane("outage", uri=far.uri) as made:
            assert [await ask(made, each) for each in (None, "2", "@second")] == ["one:a", "two:a", "two:a"]
            await made.resolver.resolve("3")
            assert (await made.describe())["registry_reachable"]
            far.stop()
            started = time.monotonic()
            assert [await ask(made, each) for each in (None, "1", "2", "@second")] == [
                "one:a",
                "one:a",
                "two:a",
                "two:a",
            ]
            assert time.monotonic() - started < 5
            for unknown_or_unloaded in ("3", "@nobody"):
                started = time.monotonic()
                with pytest.raises(RegistryUnavailable) as caught:
                    await ask(made, unknown_or_unloaded)
                assert caught.value.retry_after
                assert time.monotonic() - started < 10
            await asyncio.sleep(5.5)  # until the list is asked for again
            await made.describe()
            await asyncio.sleep(3)  # the call goes on when the page has been answered
            described = await made.describe()
            assert described["default_version"] == "1"
            assert not described["registry_reachable"]
            assert [each["version"] for each in described["versions"]] == ["3", "2", "1"]
            far.start()
            await asyncio.sleep(5.5)
            assert await ask(made, "3") == "three:a"


async def test_a_registry_that_hangs_keeps_nobody_waiting_who_needs_nothing_from_it(plane, far):
    with impatient_http(RegistryAddress(far.uri, timeout_s=3.0)):
        async with plane("outage", uri=far.uri) as made:
            assert await ask(made, "2") == "two:a"
            with far.hanging():
                started = time.monotonic()
                assert await ask(made, None) == "one:a"
                assert time.monotonic() - started < 1
                with pytest.raises(RegistryUnavailable):
                    await ask(made, "3")
                assert time.monotonic() - started < 8
                await asyncio.sleep(5.5)
                for _ in range(20):
                    started = time.monotonic()
                    assert await ask(made, "2") == "two:a"
                    assert time.monotonic() - started < 1
                    await asyncio.sleep(0.25)
