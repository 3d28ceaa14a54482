"""The cache alone, with loads that are events rather than models."""

import asyncio
import gc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest

from registry_serve.cache import VersionCache
from registry_serve.errors import ConfigurationError, DiskFull, Draining, LoadFailed, RegistryUnavailable
from registry_serve.leases import VersionState
from registry_serve.policies import CachePolicy
from tests.waiting import Clock


class Model:
    def __init__(self, key):
        self.key = key
        self.closed = 0


@pytest.fixture
def clock(monkeypatch):
    """The clock by which pauses after failures end."""
    made = Clock()
    monkeypatch.setattr("registry_serve.failures.time", SimpleNamespace(monotonic=made))
    return made


class Garage:
    """Loads models when told to and counts what happens to them."""

    def __init__(self, **policy):
        self.gates: dict[str, asyncio.Event] = {}
        self.errors: dict[str, Exception] = {}
        self.loaded: list[Model] = []
        self.changes: list[tuple[str, str]] = []
        self.sizes: dict[str, int] = {}
        policy.setdefault("retry_failed_after_s", 0.05)
        self.cache = VersionCache(
            self.close,
            CachePolicy(**policy),
            size_of=lambda model: self.sizes.get(model.key, 0),
            on_change=lambda key, state: self.changes.append((key, state.value)),
        )

    async def load(self, key):
        if key in self.gates:
            await self.gates[key].wait()
        if key in self.errors:
            raise self.errors[key]
        model = Model(key)
        self.loaded.append(model)
        return model

    async def close(self, model):
        model.closed += 1

    def lease(self, key):
        return self.cache.lease(key, partial(self.load, key))

    async def use(self, key):
        async with self.lease(key) as lease:
            return lease.model

    async def pin(self, key):
        await self.cache.pin(key, partial(self.load, key))

    def held(self):
        return {key for key, state in self.cache.states().items() if state is VersionState.READY}


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_hit_loads_nothing():
    garage = Garage()
    first = await garage.use("1")
    assert await garage.use("1") is first
    assert garage.cache.loads == 1
    assert garage.changes == [("1", "loading"), ("1", "ready")]


async def test_many_waiters_share_one_load():
    garage = Garage()
    garage.gates["1"] = asyncio.Event()
    users = [asyncio.create_task(garage.use("1")) for _ in range(50)]
    await settle()
    assert garage.cache.states() == {"1": VersionState.LOADING}
    garage.gates["1"].set()
    models = await asyncio.gather(*users)
    assert len(set(map(id, models))) == 1
    assert len(garage.loaded) == 1


async def test_different_versions_load_at_the_same_time_up_to_the_bound():
    garage = Garage(max_models=5, max_concurrent_loads=2)
    garage.gates = {key: asyncio.Event() for key in "123"}
    users = [asyncio.create_task(garage.use(key)) for key in "123"]
    await settle()
    assert garage.cache.loads == 2
    garage.gates["2"].set()
    await users[1]
    await settle()
    assert garage.cache.loads == 3
    for gate in garage.gates.values():
        gate.set()
    await asyncio.gather(*users)


async def test_one_version_answers_while_another_loads():
    garage = Garage()
    await garage.use("1")
    garage.gates["2"] = asyncio.Event()
    waiting = asyncio.create_task(garage.use("2"))
    await settle()
    assert (await asyncio.wait_for(garage.use("1"), 0.1)).key == "1"
    garage.gates["2"].set()
    await waiting


async def test_a_caller_that_leaves_cancels_nothing_for_the_others():
    garage = Garage()
    garage.gates["1"] = asyncio.Event()
    leaves, stays = asyncio.create_task(garage.use("1")), asyncio.create_task(garage.use("1"))
    await settle()
    leaves.cancel()
    await settle()
    garage.gates["1"].set()
    assert (await stays).key == "1"
    assert garage.cache.loads == 1


async def test_a_load_that_everyone_left_is_kept_and_leaks_no_lease():
    garage = Garage(max_models=1)
    garage.gates["1"] = asyncio.Event()
    leaves = asyncio.create_task(garage.use("1"))
    await settle()
    leaves.cancel()
    garage.gates["1"].set()
    await settle()
    assert garage.held() == {"1"}
    await garage.use("2")
    await settle()
    assert garage.loaded[0].closed == 1


async def test_the_least_recently_used_version_is_evicted():
    garage = Garage(max_models=2)
    for key in ("1", "2", "1", "3"):
        await garage.use(key)
    assert garage.held() == {"1", "3"}
    await settle()
    assert [model.key for model in garage.loaded if model.closed] == ["2"]


async def test_a_pinned_version_stays():
    garage = Garage(max_models=2)
    await garage.pin("1")
    for key in ("2", "3", "4"):
        await garage.use(key)
    assert garage.held() == {"1", "4"}


async def test_with_room_for_the_pinned_version_only_others_close_after_use():
    garage = Garage(max_models=1)
    await garage.pin("1")
    assert (await garage.use("2")).key == "2"
    await settle()
    assert garage.held() == {"1"}
    assert garage.loaded[1].closed == 1


async def test_a_leased_model_is_closed_only_after_its_last_lease_and_once():
    garage = Garage(max_models=1)
    async with garage.lease("1") as lease:
        async with garage.lease("1"):
            await garage.use("2")
            await settle()
            assert garage.cache.states()["1"] is VersionState.DRAINING
            assert lease.model.closed == 0
        await settle()
        assert lease.model.closed == 0
    await settle()
    assert lease.model.closed == 1
    assert "1" not in garage.cache.states()


async def test_an_extension_keeps_the_model_open_after_the_lease():
    garage = Garage(max_models=1)
    async with garage.lease("1") as lease:
        end = lease.extend()
    await garage.use("2")
    await settle()
    assert lease.model.closed == 0
    end()
    await settle()
    assert lease.model.closed == 1


async def test_a_draining_version_that_is_asked_for_again_is_loaded_anew():
    garage = Garage(max_models=1)
    async with garage.lease("1") as lease:
        await garage.use("2")
        again = await garage.use("1")
        assert again is not lease.model
    await settle()
    assert lease.model.closed == 1
    assert again.closed == 0


async def test_every_copy_of_a_version_in_memory_is_told():
    garage = Garage(max_models=1)
    async with garage.lease("1") as old:
        await garage.use("2")
        async with garage.lease("1") as new:
            assert garage.cache.models() == [("1", old.model), ("1", new.model)]
            assert garage.cache.states()["1"] is VersionState.READY
    await settle()
    assert garage.cache.models() == [("1", new.model)]


async def test_a_version_that_failed_while_an_old_copy_drained_is_still_told_as_failed():
    garage = Garage(max_models=1, retry_failed_after_s=60)
    async with garage.lease("1"):
        await garage.use("2")
        garage.errors["1"] = LoadFailed("toy", "1", "broken")
        with pytest.raises(LoadFailed):
            await garage.use("1")
    await settle()
    assert garage.cache.states()["1"] is VersionState.FAILED
    assert [state for key, state in garage.changes if key == "1"][-1] == "failed"


async def test_a_broken_version_evicts_nothing():
    garage = Garage(max_models=2, retry_failed_after_s=0)
    await garage.use("1")
    await garage.use("2")
    garage.errors["3"] = LoadFailed("m", "3", "it is broken")
    for _ in range(100):
        with pytest.raises(LoadFailed):
            await garage.use("3")
    assert garage.held() == {"1", "2"}
    assert garage.cache.evictions == 0


async def test_a_failure_is_told_to_all_and_not_tried_again_for_a_while(clock):
    garage = Garage(retry_failed_after_s=60)
    garage.errors["1"] = LoadFailed("m", "1", "it is broken")
    outcomes = await asyncio.gather(*(garage.use("1") for _ in range(10)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {LoadFailed}
    with pytest.raises(LoadFailed):
        await garage.use("1")
    assert garage.cache.loads == 1
    assert garage.cache.states() == {"1": VersionState.FAILED}
    del garage.errors["1"]
    clock.now += 59.9
    with pytest.raises(LoadFailed):
        await garage.use("1")
    clock.now += 0.1
    assert (await garage.use("1")).key == "1"
    assert garage.cache.states() == {"1": VersionState.READY}


async def test_the_pause_grows_with_each_failure(clock):
    garage = Garage(retry_failed_after_s=20)
    garage.errors["1"] = LoadFailed("m", "1", "it is broken")
    for loads, pause in enumerate((20, 40, 80), start=1):
        for passes in (0, pause - 0.1):
            clock.now += passes
            with pytest.raises(LoadFailed):
                await garage.use("1")
            assert garage.cache.loads == loads
        clock.now += 0.1


async def test_a_registry_that_is_down_is_not_held_against_the_version():
    garage = Garage(retry_failed_after_s=60)
    garage.errors["1"] = RegistryUnavailable("reading")
    with pytest.raises(RegistryUnavailable):
        await garage.use("1")
    del garage.errors["1"]
    assert (await garage.use("1")).key == "1"


async def test_a_failed_load_that_everyone_left_makes_no_noise(caplog):
    garage = Garage()
    garage.gates["1"] = asyncio.Event()
    garage.errors["1"] = LoadFailed("m", "1", "it is broken")
    leaves = asyncio.create_task(garage.use("1"))
    await settle()
    leaves.cancel()
    garage.gates["1"].set()
    await settle()
    assert caplog.records == []


async def test_a_model_that_cannot_be_closed_is_logged_and_forgotten(caplog):
    garage = Garage(max_models=1)

    async def refuse(model):
        raise RuntimeError("no")

    garage.cache._close = refuse
    await garage.use("1")
    await garage.use("2")
    await settle()
    assert "Closing a model failed" in caplog.text
    assert garage.held() == {"2"}


async def test_closing_waits_for_leases_then_closes_everything_once():
    garage = Garage(max_models=3)
    await garage.use("1")
    async with garage.lease("2") as lease:
        closing = asyncio.create_task(garage.cache.aclose())
        await asyncio.sleep(0.03)
        assert not closing.done()
        assert lease.model.closed == 0
        with pytest.raises(Draining):
            await garage.use("1")
    await closing
    assert [model.closed for model in garage.loaded] == [1, 1]


async def test_closing_tells_those_who_wait_and_closes_what_is_still_loading():
    garage = Garage(max_concurrent_loads=2)
    garage.gates = {key: asyncio.Event() for key in "12"}
    waiting, leaves = asyncio.create_task(garage.use("1")), asyncio.create_task(garage.use("2"))
    await settle()
    leaves.cancel()
    closings = [asyncio.create_task(garage.cache.aclose()) for _ in range(2)]
    with pytest.raises(Draining):
        await waiting
    assert not any(closing.done() for closing in closings)
    for gate in garage.gates.values():
        gate.set()
    await asyncio.wait_for(asyncio.gather(*closings), 1)
    assert [model.closed for model in garage.loaded] == [1, 1]
    assert garage.cache.states() == {}


async def test_models_in_memory_are_bounded_while_old_ones_drain():
    garage = Garage(max_models=2, max_concurrent_loads=1)
    release = asyncio.Event()

    async def hold(key):
        async with garage.lease(key):
            await release.wait()

    holders = [asyncio.create_task(hold(str(number))) for number in range(20)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(garage.loaded) == 3
    release.set()
    await asyncio.gather(*holders)
    assert len(garage.loaded) == 20
    await settle()
    assert [model.key for model in garage.loaded if not model.closed] == sorted(garage.held(), key=int)


async def test_a_failed_load_keeps_nothing_of_the_model():
    garage = Garage(retry_failed_after_s=60)
    seen = []

    class Weights:
        pass

    async def load():
        weights = Weights()
        seen.append(weakref.ref(weights))
        raise LoadFailed("m", "1", "it is broken") from ValueError(weights)

    for _ in range(2):
        with pytest.raises(LoadFailed):
            async with garage.cache.lease("1", load):
                pass
    await settle()
    gc.collect()
    assert [weights() for weights in seen] == [None]


async def test_a_thousand_users_who_come_and_go_leave_nothing_behind():
    garage = Garage(max_models=3)

    async def use_a_while(number):
        async with garage.lease(str(number % 7)) as lease:
            await asyncio.sleep(0.001 * (number % 5))
            assert lease.model.closed == 0

    users = [asyncio.create_task(use_a_while(number)) for number in range(1000)]
    await asyncio.sleep(0.002)
    for user in users[::3]:
        user.cancel()
    await asyncio.gather(*users, return_exceptions=True)
    await settle()
    assert len(garage.held()) <= 3
    open_models = [model for model in garage.loaded if model.closed == 0]
    assert {model.key for model in open_models} == garage.held()
    assert all(model.closed <= 1 for model in garage.loaded)


async def test_a_caller_may_bound_its_wait_and_the_load_goes_on_without_it():
    garage = Garage()
    garage.gates["1"] = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with garage.cache.lease("1", partial(garage.load, "1"), wait_s=0.01):
            pass
    garage.gates["1"].set()
    await garage.use("1")
    assert garage.cache.loads == 1


async def test_versions_are_unloaded_when_their_bytes_exceed_the_room():
    garage = Garage(max_models=10, max_bytes=100)
    garage.sizes = {"1": 40, "2": 40, "3": 30, "4": 20}
    for key in ("1", "2", "1", "3"):
        await garage.use(key)
    assert garage.held() == {"1", "3"}
    await garage.use("4")
    assert (garage.held(), garage.cache.bytes, garage.cache.evictions) == ({"1", "3", "4"}, 90, 1)


async def test_a_version_larger_than_all_the_room_is_served_beside_the_pinned_one_alone():
    garage = Garage(max_models=10, max_bytes=100)
    garage.sizes = {"default": 60, "2": 10, "huge": 500}
    await garage.pin("default")
    await garage.use("2")
    assert (await garage.use("huge")).closed == 0
    assert garage.held() == {"default", "huge"}
    await garage.use("2")
    assert garage.held() == {"default", "2"}


async def test_a_version_that_nobody_asks_for_is_unloaded_after_a_while_but_not_a_pinned_one():
    garage = Garage(max_models=10, idle_ttl_s=0.05)
    await garage.pin("default")
    model = await garage.use("2")
    await until(lambda: model.closed == 1)
    assert garage.held() == {"default"}
    assert garage.changes[-2:] == [("2", "draining"), ("2", "absent")]


async def test_a_version_in_use_is_not_idle():
    garage = Garage(idle_ttl_s=0.02)
    async with garage.lease("1") as lease:
        await asyncio.sleep(0.1)
        assert (garage.held(), lease.model.closed) == ({"1"}, 0)
    await until(lambda: not garage.held())


async def test_a_lost_model_is_closed_once_and_loaded_again_and_stays_pinned_if_it_was():
    garage = Garage(max_models=1)
    await garage.pin("default")
    async with garage.lease("default") as lease:
        lost = lease.model
        garage.cache.discard("default", lost)
        garage.cache.discard("default", lost)
        assert (lost.closed, garage.cache.states()["default"]) == (0, VersionState.DRAINING)
        assert await garage.use("default") is not lost
    await settle()
    assert lost.closed == 1
    await garage.use("2")
    assert garage.held() == {"default"}


async def test_a_version_goes_through_its_states_in_order():
    garage = Garage(max_models=1)
    garage.errors["bad"] = LoadFailed("toy", "bad", "broken")
    await garage.use("1")
    await garage.use("2")
    with pytest.raises(LoadFailed):
        await garage.use("bad")
    await settle()
    states = {key: [state for changed, state in garage.changes if changed == key] for key in ("1", "2", "bad")}
    assert states == {
        "1": ["loading", "ready", "draining", "absent"],
        "2": ["loading", "ready"],
        "bad": ["loading", "failed"],
    }


@pytest.mark.parametrize(
    "wrong", [{"max_bytes": 0}, {"idle_ttl_s": 0}, {"max_models": 0}, {"retry_failed_at_most_s": 1}], ids=str
)
def test_a_policy_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigurationError):
        CachePolicy(**wrong)


async def test_closing_starts_no_load_that_still_waited_for_room():
    garage = Garage(max_models=2, max_concurrent_loads=1)
    garage.gates["1"] = asyncio.Event()
    asking = [asyncio.ensure_future(garage.use(key)) for key in ("1", "2", "3")]
    await settle()
    closing = asyncio.ensure_future(garage.cache.aclose())
    await settle()
    garage.gates["1"].set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    await closing
    assert all(isinstance(outcome, Draining) for outcome in outcomes)
    assert [model.key for model in garage.loaded] == ["1"]


async def test_a_version_that_loads_for_longer_than_it_may_idle_is_there_when_it_is_asked_for_again():
    garage = Garage(idle_ttl_s=0.3)
    garage.gates["1"] = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with garage.cache.lease("1", partial(garage.load, "1"), wait_s=0.01):
            pass
    await asyncio.sleep(0.4)
    garage.gates["1"].set()
    await settle()
    assert garage.held() == {"1"}


async def test_an_observer_that_fails_stops_nothing():
    garage = Garage()

    def fail(key, state):
        raise RuntimeError

    garage.cache._on_change = fail
    assert (await garage.use("1")).closed == 0


async def test_a_full_disk_is_remembered_like_any_failed_load():
    garage = Garage(retry_failed_after_s=60)
    garage.errors["1"] = DiskFull("toy", "1")
    for _ in range(3):
        with pytest.raises(DiskFull):
            await garage.use("1")
    assert garage.cache.loads == 1
