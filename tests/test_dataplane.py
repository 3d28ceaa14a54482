"""The way of a request, with a real registry and real models in this process, without Ray and HTTP."""

import asyncio
import json
import threading
import time

import pandas as pd
import pytest
from mlflow.models import infer_signature

from registry_serve.errors import (
    Draining,
    InvalidRequest,
    LoadFailed,
    MalformedJSON,
    PredictionFailed,
    PredictionTimeout,
    SignatureConflict,
    TooManyRequests,
    VersionForbidden,
    VersionLoading,
    VersionNotFound,
    WarmUpFailed,
)
from registry_serve.leases import VersionState
from tests.toys import Constant, Shout


def body(*values, column="prompt"):
    return json.dumps([{column: value} for value in values]).encode()


async def ask(plane, reference, *values):
    answer = await plane.predict(reference, body(*values))
    return answer.version, [row["text"] for row in json.loads(answer.body)]


def ready(plane):
    return {key.number for key, state in plane.cache.states().items() if state is VersionState.READY}


async def test_a_request_without_a_version_gets_the_default(plane, shelf):
    async with plane() as made:
        assert made.ready
        for blank in (None, "", "  "):
            assert await ask(made, blank, "a", "b") == ("1", ["one:a", "one:b"])
        assert shelf.loads() == ["one"]


async def test_a_version_is_asked_for_by_number_alias_or_latest(plane):
    async with plane() as made:
        for reference in ("2", "02", "@challenger", "challenger"):
            assert await ask(made, reference, "a") == ("2", ["two:a"])
        assert (await ask(made, "latest", "a"))[0] == "6"
        assert await ask(made, "champion", "a") == ("1", ["one:a"])


async def test_what_does_not_exist_or_does_not_fit_touches_no_model(plane, shelf):
    async with plane() as made:
        await ask(made, "2", "warm")
        shelf.loads()
        for reference in ("99", "@nobody", "../1", "a b", "12345678901", "\N{FULLWIDTH DIGIT ONE}"):
            with pytest.raises(VersionNotFound):
                await ask(made, reference, "a")
        for _ in range(100):
            with pytest.raises(SignatureConflict):
                await ask(made, "3", "a")
        assert ready(made) == {"1", "2"}
        assert made.cache.loads == 2
        assert made.cache.evictions == 0
        assert shelf.loads() == []


async def test_a_broken_version_evicts_nothing_and_is_tried_once(plane, shelf):
    async with plane() as made:
        await ask(made, "2", "warm")
        shelf.loads()
        for _ in range(20):
            with pytest.raises(LoadFailed) as caught:
                await ask(made, "5", "a")
        assert "secret" not in str(caught.value)
        assert ready(made) == {"1", "2"}
        assert made.cache.evictions == 0
        assert shelf.loads() == ["broken"]


async def test_a_conflict_names_the_differences(plane):
    async with plane() as made:
        with pytest.raises(SignatureConflict) as caught:
            await ask(made, "3", "a")
    columns = {(each["where"], each["column"], each["kind"]) for each in caught.value.differences}
    assert columns == {("inputs", "prompt", "removed"), ("inputs", "other", "added")}


async def test_a_conflict_comes_before_a_malformed_body(plane):
    async with plane() as made:
        with pytest.raises(SignatureConflict):
            await made.predict("3", b"{bad")
        with pytest.raises(MalformedJSON):
            await made.predict("2", b"{bad")


async def test_only_allowed_versions_answer_and_the_default_always_does(plane, shelf):
    async with plane(versions="aliased") as made:
        assert (await ask(made, "2", "a"))[0] == "2"
        with pytest.raises(VersionForbidden, match="versions with an alias"):
            await ask(made, "6", "a")
        with pytest.raises(VersionNotFound) as caught:
            await ask(made, "99", "a")
        assert caught.value.members["available"] == ["@challenger", "@champion", "2", "1"]
    async with plane(versions=[2]) as made:
        assert (await ask(made, "1", "a"))[0] == "1"
        assert (await ask(made, "2", "a"))[0] == "2"
        with pytest.raises(VersionForbidden):
            await ask(made, "6", "a")
        assert "six" not in shelf.loads()


async def test_many_first_requests_load_a_version_once(plane, shelf):
    async with plane() as made:
        shelf.loads()
        answers = await asyncio.gather(*(ask(made, "2", str(number)) for number in range(50)))
        assert answers == [("2", [f"two:{number}"]) for number in range(50)]
        assert shelf.loads() == ["two"]


async def test_one_version_answers_while_another_loads(plane):
    async with plane() as made:
        loading = asyncio.create_task(ask(made, "4", "a"))
        await asyncio.sleep(0.3)
        slowest = 0.0
        while not loading.done():
            started = time.monotonic()
            await ask(made, None, "a")
            slowest = max(slowest, time.monotonic() - started)
        assert await loading == ("4", ["four:a"])
        assert slowest < 1.0


async def test_a_caller_that_leaves_does_not_cancel_the_load(plane, shelf):
    async with plane() as made:
        shelf.loads()
        leaves = asyncio.create_task(ask(made, "4", "a"))
        stays = asyncio.create_task(ask(made, "4", "b"))
        await asyncio.sleep(0.5)
        leaves.cancel()
        assert await stays == ("4", ["four:b"])
        assert shelf.loads() == ["four"]


async def test_a_caller_that_leaves_takes_its_work_out_of_the_queue(plane):
    async with plane() as made:
        busy = asyncio.create_task(ask(made, None, "sleep 0.5"))
        await asyncio.sleep(0.1)
        leaves = asyncio.create_task(ask(made, None, "sleep 5"))
        await asyncio.sleep(0.1)
        leaves.cancel()
        await busy
        started = time.monotonic()
        await ask(made, None, "a")
        assert time.monotonic() - started < 2


async def test_a_model_is_not_closed_under_a_caller_that_left(plane):
    began, goes_on, closed = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        def predict(self, data, params):
            began.set()
            goes_on.wait(10)
            return [{"text": "done"}]

        def close(self):
            closed.set()

    async def state(version):
        await asyncio.sleep(0.1)
        return {key.number: state.value for key, state in made.cache.states().items()}.get(version)

    async with plane(load=lambda version: Slow(), start=False, max_models=1, batching="off") as made:
        leaves = asyncio.create_task(ask(made, "2", "a"))
        assert await asyncio.to_thread(began.wait, 10)
        leaves.cancel()
        stays = asyncio.create_task(ask(made, "6", "a"))
        while await state("6") != "ready":
            pass
        # Evicted, and not given up as long as it computes.
        assert (await state("2"), closed.is_set()) == ("draining", False)
        goes_on.set()
        assert await stays == ("6", ["done"])
        assert await state("2") is None
        assert closed.is_set()


async def test_an_example_whose_columns_are_only_counted_is_used(plane, shelf):
    example = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]])
    shelf.log("counted", Constant(5), signature=infer_signature(example), input_example=example)
    async with plane("counted") as made:
        assert (await made.predict(None, b'{"0": 1, "1": 2}')).body == b"5"


@pytest.mark.parametrize("order", ["raise", "exit", "stop"])
async def test_whatever_the_model_raises_stays_in_the_request(plane, order):
    async with plane() as made:
        with pytest.raises(PredictionFailed) as caught:
            await ask(made, None, order)
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is not None
        assert await ask(made, None, "a") == ("1", ["one:a"])


async def test_an_answer_without_a_json_form_is_the_models_failure(plane, shelf):
    version = shelf.log("unspeakable", Constant(3 + 4j), signature=shelf_signature())
    async with plane("unspeakable", version) as made:
        with pytest.raises(PredictionFailed, match="no JSON form"):
            await ask(made, None, "a")


async def test_a_prediction_that_takes_too_long_is_given_up(plane):
    async with plane(request_timeout_s=0.3) as made:
        with pytest.raises(PredictionTimeout):
            await ask(made, None, "sleep 1")


async def test_a_load_that_outlasts_the_wait_goes_on(plane):
    async with plane(request_timeout_s=1.0) as made:
        with pytest.raises(VersionLoading):
            await ask(made, "4", "a")
        await asyncio.sleep(3)
        assert await ask(made, "4", "a") == ("4", ["four:a"])


async def test_too_many_pending_requests_are_refused(plane):
    async with plane(max_pending_requests=3) as made:
        slow = [asyncio.create_task(ask(made, None, "sleep 0.3")) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(TooManyRequests):
            await ask(made, None, "a")
        await asyncio.gather(*slow)
        assert await ask(made, None, "a") == ("1", ["one:a"])


async def test_closing_lets_requests_finish_and_refuses_new_ones(plane):
    async with plane() as made:
        slow = asyncio.create_task(ask(made, None, "sleep 0.5"))
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(made.aclose())
        await asyncio.sleep(0.05)
        assert not made.ready
        with pytest.raises(Draining):
            await ask(made, None, "a")
        assert await slow == ("1", ["one:sleep 0.5"])
        await closing
        assert made.cache.states() == {}


async def test_a_default_that_cannot_answer_its_own_example_is_not_ready(plane, shelf):
    class Fails(Shout):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            raise ValueError("no")

    version = shelf.log("fails", Fails("f"), signature=shelf_signature(), input_example={"prompt": "hello"})
    async with plane("fails", version, start=False) as made:
        with pytest.raises(WarmUpFailed):
            await made.start()
        assert not made.ready


async def test_others_are_answered_while_a_large_body_is_checked(plane):
    async with plane(max_models=2) as made:
        await ask(made, "2", "warm")
        large = asyncio.create_task(ask(made, None, *["x" * 10] * 300_000))
        waits = []
        while not large.done():
            started = time.monotonic()
            await ask(made, "2", "a")
            waits.append(time.monotonic() - started)
        assert len((await large)[1]) == 300_000
        assert len(waits) > 5
        assert max(waits) < 1.0


async def test_the_first_call_may_take_longer_than_any_other(plane, shelf):
    version = shelf.log("slow start", Shout("slow", load_s=0), input_example=pd.DataFrame({"prompt": ["sleep 0.6"]}))
    async with plane("slow start", version, request_timeout_s=0.3) as made:
        assert made.ready


async def test_an_example_that_fits_no_request_is_told(plane, shelf, caplog):
    version = shelf.log(
        "misfit", Shout("m"), signature=shelf_signature(), input_example=pd.DataFrame({"prompt": ["a"], "x": [1]})
    )
    async with plane("misfit", version) as made:
        assert made.ready
    assert "fits no request" in caplog.text


async def test_answers_that_differ_from_the_declared_outputs_are_logged_once_and_counted(plane, shelf, caplog):
    version = shelf.log("liar", Constant([{"lie": 1}]), signature=shelf_signature())
    async with plane("liar", version) as made:
        for _ in range(3):
            await made.predict(None, body("a"))
        assert made.status()["undeclared_answers"] == 3
    assert caplog.text.count("answers otherwise than its signature declares") == 1


async def test_a_python_caller_is_checked_like_any_other(plane):
    async with plane() as made:
        assert json.loads(await made.call("2", {"prompt": "a"}, None)) == [{"text": "two:a"}]
        with pytest.raises(InvalidRequest):
            await made.call(None, {"prompt": 1}, None)


async def test_the_description_says_which_versions_keep_the_contract(plane):
    async with plane() as made:
        described = await made.describe()
    versions = {each["version"]: each for each in described["versions"]}
    assert described["default_version"] == "1"
    assert described["aliases"] == {"champion": "1", "challenger": "2"}
    assert versions["1"]["state"] == "ready"
    assert versions["2"]["compatible"] is True
    assert versions["2"]["state"] == "absent"
    assert versions["3"]["compatible"] is False
    assert versions["3"]["differences"][0]["column"] == "prompt"
    json.dumps(described)


def shelf_signature():
    return infer_signature(pd.DataFrame({"prompt": ["a"]}), pd.DataFrame({"text": ["a"]}))
