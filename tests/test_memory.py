"""What is unloaded is gone: memory, threads, deletion of models, also of those that Ray has frozen."""

import asyncio
import gc
import threading

import psutil
import pytest

from registry_serve.errors import ReplicaStuck, VersionLoading
from registry_serve.policies import CachePolicy
from tests.test_dataplane import ask, body, ready
from tests.toys import Mourned


@pytest.fixture
def mourned(shelf, tmp_path):
    """Register two versions that note their end; gives their name and a function that counts the notes."""
    note = tmp_path / "notes.txt"
    name = f"mourned_{tmp_path.name}"
    for _ in range(2):
        shelf.log(name, Mourned(str(note)))
    gc.collect()
    note.unlink(missing_ok=True)  # MLflow loads what it logs, to try it

    def deaths():
        return len(note.read_text().splitlines()) if note.exists() else 0

    yield name, deaths
    gc.unfreeze()


async def until(condition):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


async def test_an_evicted_model_with_del_is_deleted_once_and_not_while_it_is_used(plane, mourned):
    name, deaths = mourned
    async with plane(name, max_models=1) as made:
        for turn in range(1, 4):
            answer = await made.predict("2", body("a"))
            assert answer.body == b'["a!"]'
            await until(lambda turn=turn: deaths() == turn)
        assert made.cache.loads == 4
    await until(lambda: deaths() == 4)


async def test_a_preloaded_model_is_freed_although_it_was_frozen(plane, mourned):
    name, deaths = mourned
    async with plane(name) as made:
        gc.collect()
        gc.freeze()
        assert (await made.predict(None, body("a"))).body == b'["a!"]'
    assert deaths() == 1


async def test_loading_and_evicting_again_and_again_leaves_nothing_behind(plane):
    process, earlier = psutil.Process(), set(threading.enumerate())

    def started():
        # Pools grow up to their bound whenever they like.
        there = sorted(each.name for each in set(threading.enumerate()) - earlier)
        for pool in ("registry-known", "registry-others"):
            assert len([name for name in there if name.startswith(pool)]) <= 2
        return [name for name in there if not name.startswith(("asyncio_", "registry-"))]

    async with plane() as made:

        async def cycle(times):
            for turn in range(times):
                await ask(made, "2" if turn % 2 else "6", "a")
            await until(lambda: [name for name in started() if name.startswith("toy-")] == ["toy-1_0", "toy-2_0"])
            gc.collect()
            return started(), process.num_fds(), len(gc.get_objects())

        threads, files, objects = await cycle(16)
        after = await cycle(24)
        assert after[0] == threads
        assert after[1] <= files + 1
        assert after[2] < objects * 1.02


async def test_a_cold_load_may_be_waited_for_less_long_than_a_prediction(plane, shelf):
    async with plane(cold_load_wait_s=0.2, request_timeout_s=30) as made:
        with pytest.raises(VersionLoading) as loading:
            await ask(made, "4", "a")
        assert (loading.value.status, loading.value.retry_after) == (503, 5)
        assert await ask(made, None, "sleep 0.4") == ("1", ["one:sleep 0.4"])
        await until(lambda: "4" in ready(made))
        assert await ask(made, "4", "a") == ("4", ["four:a"])
        assert shelf.loads() == ["one", "four"]


async def test_an_idle_version_is_unloaded_and_loaded_again_when_asked_for(plane, shelf):
    async with plane(cache=CachePolicy(idle_ttl_s=0.1)) as made:
        await ask(made, "2", "a")
        await until(lambda: ready(made) == {"1"})
        await ask(made, "2", "a")
        assert shelf.loads() == ["one", "two", "two"]


async def test_versions_are_bounded_by_the_size_of_their_artifacts(plane):
    async with plane(cache=CachePolicy(max_models=10)) as made:
        await ask(made, "2", "a")
        size = made.cache.bytes // 2
        assert size > 1000
    async with plane(cache=CachePolicy(max_models=10, max_bytes=int(size * 2.5))) as made:
        for version in ("2", "6", "2"):
            await ask(made, version, "a")
            assert ready(made) == {"1", version}


async def test_a_model_that_does_not_come_back_makes_the_replica_unhealthy(plane):
    async with plane(stuck_after_s=0.1, request_timeout_s=0.2) as made:
        made.check_health()
        asking = asyncio.ensure_future(ask(made, None, "sleep 1"))
        await asyncio.sleep(0.3)
        with pytest.raises(ReplicaStuck, match="A call of version 1 of 'toy' has not come back"):
            made.check_health()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: made.cache.models() and all(not model.busy_s for _, model in made.cache.models()))
        made.check_health()


async def test_a_copy_that_hangs_behind_a_newer_one_of_its_version_makes_the_replica_unhealthy(plane, tmp_path):
    async with plane(stuck_after_s=2, request_timeout_s=2) as made:
        asking = asyncio.ensure_future(ask(made, "2", f"until {tmp_path / 'told'}"))
        try:
            await until(lambda: any(model.busy_s for _, model in made.cache.models()))
            for version in ("6", "2"):
                await ask(made, version, "a")
            assert len([key for key, _ in made.cache.models() if key.number == "2"]) == 2
            await until(lambda: max(model.busy_s for _, model in made.cache.models()) > 2)
            with pytest.raises(ReplicaStuck, match="A call of version 2"):
                made.check_health()
        finally:
            (tmp_path / "told").touch()
        await asyncio.gather(asking, return_exceptions=True)


async def test_a_load_that_does_not_come_back_makes_the_replica_unhealthy(plane):
    async with plane(stuck_after_s=0.05, request_timeout_s=10) as made:
        asking = asyncio.ensure_future(ask(made, "4", "a"))
        await asyncio.sleep(1)
        with pytest.raises(ReplicaStuck, match="Loading version 4"):
            made.check_health()
        await asking
        made.check_health()
