"""The resolver over real registries: what is asked, what is believed, and what happens while nobody answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from mlflow.models import set_signature

from registry_serve.contract import Contract
from registry_serve.description import describe
from registry_serve.errors import (
    Draining,
    LoadFailed,
    ModelNotFound,
    RegistryUnavailable,
    VersionForbidden,
    VersionNotFound,
)
from registry_serve.leases import VersionState
from registry_serve.policies import RegistryAddress, VersionPolicy
from registry_serve.registry import Registry, Resolver, impatient_http
from registry_serve.registry.lookups import MOST_ANSWERS, MOST_WAITING, RENEWAL_WAIT_S, Lookups
from tests.mlflow_server import DOUBLE, TEXT, Place, embedded, made_global, shared_server
from tests.waiting import Clock

ALL = VersionPolicy()


class Watched(Registry):
    """A registry that counts what it is asked, and that can be slow or away."""

    def __init__(self, address: RegistryAddress) -> None:
        super().__init__(address)
        self.asked: Counter[str] = Counter()
        self.cards_read = 0
        self.away = False
        self.gate = threading.Event()
        self.gate.set()

    def version(self, model, number, **options):
        self._count(number)
        version = super().version(model, number, **options)
        self.cards_read += version.card is not getattr(options.get("known"), "card", None)
        return version

    def number_of(self, model, reference, **options):
        if reference.kind != "number":
            self._count(str(reference))
        return super().number_of(model, reference, **options)

    def summaries(self, model):
        self._count("list")
        return super().summaries(model)

    def _count(self, what: str) -> None:
        self.asked[what] += 1
        assert self.gate.wait(30)
        if self.away:
            raise RegistryUnavailable(what)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """A database with model "m": 1 is the champion, 2 has no alias."""
    place = embedded(tmp_path_factory.mktemp("database"))
    for _ in range(2):
        place.register("m")
    place.client.set_registered_model_alias("m", "champion", "1")
    place.client.set_registered_model_alias("m", "7", "1")
    return place


@pytest.fixture
def registry(place) -> Watched:
    return Watched(RegistryAddress(place.uri, timeout_s=5, fresh_for_s=5))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(registry, clock, monkeypatch):
    """Return a function that makes a resolver whose default is version 1; all are closed at the end.

    Renewals are waited for longer than by default: what these tests see must not hang on how busy the machine is.
    """
    monkeypatch.setattr("registry_serve.registry.lookups.RENEWAL_WAIT_S", 10)
    made = []

    def make_one(policy: VersionPolicy = ALL, model: str = "m", **changed) -> Resolver:
        default = Registry(registry.address).version(model, "1")
        address = replace(registry.address, **changed)
        made.append(Resolver(registry, model, default, policy, address, clock=clock))
        return made[-1]

    yield make_one
    registry.gate.set()
    for each in made:
        await each.aclose()


# --- which version is meant ----------------------------------------------------------------------------------------


async def test_the_default_needs_no_registry(make, registry):
    resolver = make()
    registry.away = True
    for text in (None, "", "  "):
        assert await resolver.resolve(text) is resolver.default
    assert registry.asked == {}


@pytest.mark.parametrize(
    ("text", "number"),
    [("2", "2"), ("02", "2"), (" 2 ", "2"), ("champion", "1"), ("@champion", "1"), ("@7", "1"), ("latest", "2")],
)
async def test_numbers_aliases_and_latest_are_looked_up(make, text, number):
    version = await make().resolve(text)
    assert (version.number, version.card.signature) == (number, DOUBLE)


@pytest.mark.parametrize("text", ["9", "7", "nobody", "@nobody", "../1", "a b", "\uff11", "12345678901", "3000000000"])
async def test_what_does_not_exist_is_a_404_that_names_what_does(make, text):
    with pytest.raises(VersionNotFound) as missing:
        await make().resolve(text)
    assert missing.value.members == {"requested_version": text, "available": ["@7", "@champion", "2", "1"]}


async def test_an_error_does_not_repeat_a_header_of_any_length(make):
    with pytest.raises(VersionNotFound) as missing:
        await make().resolve("x" * 100_000)
    assert len(str(missing.value)) < 300


async def test_an_unknown_version_is_unknown_before_it_is_forbidden(make):
    resolver = make(VersionPolicy("aliased"))
    with pytest.raises(VersionNotFound):
        await resolver.resolve("9")
    with pytest.raises(VersionForbidden, match="versions with an alias"):
        await resolver.resolve("2")
    assert (await resolver.resolve("latest")).number == "1"


async def test_the_default_is_allowed_whatever_the_policy_says(make):
    resolver = make(VersionPolicy.of([2]))
    assert (await resolver.resolve("1")).key == resolver.default.key
    assert (await resolver.resolve("champion")).key == resolver.default.key
    assert (await resolver.resolve("latest")).number == "2"


async def test_the_number_of_the_default_does_not_let_another_model_pass(make, place):
    place.register("again")
    resolver = make(VersionPolicy.of([2]), model="again")
    place.client.delete_registered_model("again")
    place.register("again")
    with pytest.raises(VersionForbidden):
        await resolver.resolve("1")
    assert (await resolver.resolve(None)) is resolver.default


async def test_a_forbidden_version_costs_no_look_at_its_artifacts(make, registry, place, monkeypatch):
    place.register("hidden")
    place.register("hidden")
    resolver = make(VersionPolicy.of([3]), model="hidden")
    files = place.files_of("hidden", "2")
    files.rename(files.with_name("gone"))
    read = []
    monkeypatch.setattr("registry_serve.registry.client.read_card", lambda *source: read.append(source))
    for text in ("2", "02"):
        with pytest.raises(VersionForbidden):
            await resolver.resolve(text)
    with pytest.raises(VersionNotFound):
        await resolver.resolve("9")
    assert read == []


async def test_the_card_of_a_default_outside_the_policy_is_read_again(make, place):
    place.register("outside")
    resolver = make(VersionPolicy.of([2]), model="outside")
    with made_global(place.uri):
        set_signature(f"models:/{resolver.default.model_uuid}", TEXT)
    assert (await resolver.resolve("1")).card.signature == TEXT


async def test_versions_are_described_newest_first(make, registry):
    resolver = make()
    for _ in range(3):
        assert [(each.number, each.aliases) for each in await resolver.describe()] == [
            ("2", ()),
            ("1", ("7", "champion")),
        ]
    assert registry.asked == {"list": 1}


# --- what is believed for how long ---------------------------------------------------------------------------------


async def test_an_answer_is_believed_for_some_seconds_and_then_asked_for_again(make, registry, clock, place):
    place.register("moving")
    place.register("moving")
    place.client.set_registered_model_alias("moving", "live", "1")
    resolver = make(model="moving")
    assert (await resolver.resolve("live")).number == "1"
    place.client.set_registered_model_alias("moving", "live", "2")
    clock.now += 4.9
    assert (await resolver.resolve("@live")).number == "1"
    assert registry.asked["@live"] == 1
    clock.now += 0.2
    assert (await resolver.resolve("live")).number == "2"
    assert registry.asked["@live"] == 2

    place.client.delete_registered_model_alias("moving", "live")
    clock.now += 5.1
    with pytest.raises(VersionNotFound):
        await resolver.resolve("live")


async def test_an_alias_taken_away_forbids_its_version_within_seconds(make, clock, place):
    place.register("reviewed")
    place.register("reviewed")
    place.client.set_registered_model_alias("reviewed", "ok", "2")
    resolver = make(VersionPolicy("aliased"), model="reviewed")
    assert (await resolver.resolve("2")).aliases == ("ok",)
    place.client.delete_registered_model_alias("reviewed", "ok")
    clock.now += 5.1
    with pytest.raises(VersionForbidden):
        await resolver.resolve("2")


async def test_a_no_is_believed_for_a_second(make, registry, clock, place):
    place.register("growing")
    resolver = make(model="growing")
    for _ in range(3):
        with pytest.raises(VersionNotFound):
            await resolver.resolve("2")
        clock.now += 0.3
    assert registry.asked["2"] == 1
    place.register("growing")
    clock.now += 0.2
    assert (await resolver.resolve("2")).number == "2"


async def test_a_card_is_read_once_a_minute(make, registry, clock, place):
    place.register("described")
    resolver = make(model="described")
    before = await resolver.resolve("1")
    with made_global(place.uri):
        set_signature(f"models:/{before.model_uuid}", TEXT)
    for _ in range(5):
        clock.now += 10
        assert (await resolver.resolve("1")).card is before.card
        assert (await resolver.resolve("latest")).card is before.card
    assert registry.cards_read == 1
    clock.now += 15
    after = await resolver.resolve("1")
    assert after.card.signature == TEXT
    assert after.revision != before.revision


async def test_a_model_made_again_is_noticed_within_seconds(make, clock, place):
    place.register("reborn")
    resolver = make(model="reborn")
    before = await resolver.resolve("1")
    place.client.delete_registered_model("reborn")
    clock.now += 5.1
    with pytest.raises(ModelNotFound):
        await resolver.resolve("1")
    place.register("reborn", signature=TEXT)
    clock.now += 5.1
    after = await resolver.resolve("1")
    assert after.model_uuid != before.model_uuid
    assert after.card.signature == TEXT


async def test_artifacts_that_vanish_do_not_stop_a_version_that_is_known(make, clock, place):
    place.register("vanishing")
    place.register("vanishing")
    resolver = make(model="vanishing")
    known = await resolver.resolve("1")
    for number in ("1", "2"):
        files = place.files_of("vanishing", number)
        files.rename(files.with_name("gone"))
    clock.now += 100
    assert await resolver.resolve("1") == known
    with pytest.raises(LoadFailed):
        await resolver.resolve("2")


# --- many callers --------------------------------------------------------------------------------------------------


async def test_callers_who_want_the_same_share_one_call(make, registry):
    resolver = make()
    registry.gate.clear()
    callers = [asyncio.create_task(resolver.resolve(text)) for text in ["champion", "@champion"] * 50]
    await asyncio.sleep(0.05)
    registry.gate.set()
    assert {version.number for version in await asyncio.gather(*callers)} == {"1"}
    assert registry.asked == {"@champion": 1, "1": 1}


async def test_a_caller_who_goes_away_does_not_end_the_call_for_the_others(make, registry):
    resolver = make()
    registry.gate.clear()
    first, second = (asyncio.create_task(resolver.resolve("2")) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    registry.gate.set()
    assert (await second).number == "2"
    assert registry.asked["2"] == 1


async def test_an_answer_that_nobody_waited_for_is_kept(make, registry):
    resolver = make()
    registry.gate.clear()
    caller = asyncio.create_task(resolver.resolve("2"))
    await asyncio.sleep(0.05)
    caller.cancel()
    registry.gate.set()
    await asyncio.sleep(0.3)
    assert (await resolver.resolve("2")).number == "2"
    assert registry.asked["2"] == 1


async def test_the_event_loop_never_waits_for_the_registry(make, registry):
    resolver = make()
    registry.gate.clear()
    caller = asyncio.create_task(resolver.resolve("2"))
    started = time.monotonic()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert time.monotonic() - started < 1
    registry.gate.set()
    await caller


async def test_a_flood_of_unknown_names_neither_grows_nor_pushes_out_what_is_known(clock):
    asked: Counter[str] = Counter()

    def ask(name: str) -> str:
        asked[name] += 1
        if name.startswith("bad"):
            raise VersionNotFound("m", name, ())
        return name.upper()

    lookups: Lookups[str, str] = Lookups(ask, RegistryAddress("unused"), clock)
    assert await lookups.get("good") == "GOOD"
    for batch in range(0, 3 * MOST_ANSWERS, MOST_WAITING):
        names = [f"bad-{batch + index}" for index in range(MOST_WAITING)]
        answers = await asyncio.gather(*(lookups.get(name) for name in names), return_exceptions=True)
        assert all(isinstance(answer, VersionNotFound) for answer in answers)
    assert await lookups.get("good") == "GOOD"
    assert asked["good"] == 1
    assert len(lookups._refused) == MOST_ANSWERS
    assert list(lookups._known) == ["good"]
    assert lookups._flights == {}
    await lookups.aclose()


async def test_a_flood_of_unknown_names_does_not_keep_known_ones_waiting(clock):
    stuck = threading.Event()

    def ask(name: str) -> str:
        if name.startswith("bad"):
            stuck.wait(30)
        return name

    lookups: Lookups[str, str] = Lookups(ask, RegistryAddress("unused"), clock)
    await lookups.get("good")
    flood = [asyncio.create_task(lookups.get(f"bad-{index}")) for index in range(MOST_WAITING)]
    await asyncio.sleep(0.05)
    clock.now += 60
    assert await asyncio.wait_for(lookups.get("good"), 2) == "good"
    stuck.set()
    await asyncio.gather(*flood)
    await lookups.aclose()


async def test_time_in_line_is_no_slowness_of_the_registry():
    def ask(name: str) -> str:
        time.sleep(0.05)
        if name.startswith("bad"):
            raise VersionNotFound("m", name, ())
        return name

    # 60 questions in two threads take three time-outs; no single one takes half of one.
    lookups: Lookups[str, str] = Lookups(ask, RegistryAddress("unused", timeout_s=0.5, fresh_for_s=0.3))
    assert await lookups.get("known") == "known"
    flood = [asyncio.create_task(lookups.get(f"bad-{index}")) for index in range(60)]
    while not all(each.done() for each in flood):
        assert await lookups.get("known") == "known"
        await asyncio.sleep(0.02)
    answers = await asyncio.gather(*flood, return_exceptions=True)
    assert {type(answer) for answer in answers} == {VersionNotFound, RegistryUnavailable}
    assert lookups.answered("known")
    assert await lookups.get("new") == "new"
    turned_away = next(i for i, answer in enumerate(answers) if isinstance(answer, RegistryUnavailable))
    with pytest.raises(VersionNotFound):
        await lookups.get(f"bad-{turned_away}")
    await lookups.aclose()


async def test_a_new_version_gets_its_turn_among_unknown_names():
    def ask(name: str) -> str:
        time.sleep(0.05)
        if name.startswith("bad"):
            raise VersionNotFound("m", name, ())
        return name

    lookups: Lookups[str, str] = Lookups(ask, RegistryAddress("unused", timeout_s=10))
    flood = [asyncio.create_task(lookups.get(f"bad-{index}")) for index in range(50)]
    await asyncio.sleep(0.01)
    assert await lookups.get("new") == "new"
    await asyncio.gather(*flood, return_exceptions=True)
    await lookups.aclose()


async def test_more_unknown_names_than_may_wait_are_turned_away_at_once_and_nothing_is_remembered_of_it():
    stuck = threading.Event()

    def ask(name: str) -> str:
        if name.startswith("bad"):
            stuck.wait(30)
        return name

    lookups: Lookups[str, str] = Lookups(ask, RegistryAddress("unused"))
    await lookups.get("good")
    flood = [asyncio.create_task(lookups.get(f"bad-{index}")) for index in range(MOST_WAITING + 2)]
    await asyncio.sleep(0.05)
    started = time.monotonic()
    while len(lookups._in_line) < MOST_WAITING:
        flood.append(asyncio.create_task(lookups.get(f"bad-{len(flood)}")))
        await asyncio.sleep(0)
    with pytest.raises(RegistryUnavailable, match="too many unknown versions"):
        await lookups.get("one more")
    assert time.monotonic() - started < 0.5
    assert lookups._refused == {}
    assert lookups.answered("good")
    stuck.set()
    await asyncio.gather(*flood, return_exceptions=True)
    assert await lookups.get("one more") == "one more"
    assert lookups._in_line == set()
    await lookups.aclose()


async def test_known_answers_do_not_wait_for_a_registry_that_hangs():
    hanging, free = threading.Event(), threading.Event()

    def ask(name: str) -> str:
        if hanging.is_set():
            free.wait(30)
        if name == "deleted" and hanging.is_set():
            raise VersionNotFound("m", name, ())
        return name

    lookups: Lookups[str, str] = Lookups(ask, RegistryAddress("unused", timeout_s=1.5, fresh_for_s=0.1))
    for name in ("2", "deleted"):
        await lookups.get(name)
    hanging.set()
    await asyncio.sleep(0.15)
    started = time.monotonic()
    assert await asyncio.gather(*(lookups.get("2") for _ in range(20))) == ["2"] * 20
    assert RENEWAL_WAIT_S * 0.9 < time.monotonic() - started < RENEWAL_WAIT_S + 0.5
    started = time.monotonic()
    assert await lookups.get("2") == "2"
    assert time.monotonic() - started < 0.1  # the call hangs already, and is known to
    assert lookups.answered("2")

    # A call that nobody waited for still counts when it returns.
    assert await lookups.get("deleted") == "deleted"
    free.set()
    await asyncio.sleep(0.05)
    with pytest.raises(VersionNotFound):
        await lookups.get("deleted")

    free.clear()
    await asyncio.sleep(0.15)
    await lookups.get("2")
    await asyncio.sleep(1.5)
    assert not lookups.answered("2")
    free.set()
    await lookups.aclose()


# --- nobody answers ------------------------------------------------------------------------------------------------


async def test_the_last_known_answer_is_used_however_old_while_the_registry_is_away(make, registry, clock):
    resolver = make()
    known = await resolver.resolve("champion")
    registry.away = True
    clock.now += 1e6
    asked = registry.asked["@champion"]
    for _ in range(5):
        assert await resolver.resolve("champion") == known
    assert registry.asked["@champion"] == asked + 1
    clock.now += 5.1
    assert await resolver.resolve("champion") == known
    assert registry.asked["@champion"] == asked + 2


async def test_the_defaults_number_is_known_from_the_start(make, registry):
    resolver = make()
    registry.away = True
    assert await resolver.resolve("1") == resolver.default


async def test_what_was_never_known_is_unavailable_and_not_asked_for_each_time(make, registry, clock):
    resolver = make()
    registry.away = True
    for _ in range(3):
        with pytest.raises(RegistryUnavailable):
            await resolver.resolve("2")
    assert registry.asked["2"] == 1
    registry.away = False
    clock.now += 1.1
    assert (await resolver.resolve("2")).number == "2"


async def test_words_that_name_nothing_are_a_404_even_without_a_registry(make, registry):
    resolver = make()
    registry.away = True
    with pytest.raises(VersionNotFound) as missing:
        await resolver.resolve("../1")
    assert missing.value.members["available"] == []


async def test_a_registry_that_hangs_costs_one_timeout_and_not_one_for_each_reference(make, registry, clock):
    resolver = make(timeout_s=0.2)
    known = await resolver.resolve("champion")
    registry.gate.clear()
    clock.now += 60

    async def waiting() -> None:
        await asyncio.sleep(0.1)
        clock.now += 10  # the clock is the test's own: the wait has to be seen on it

    started = time.monotonic()
    assert (await asyncio.gather(resolver.resolve("champion"), waiting()))[0] == known
    assert 0.15 < time.monotonic() - started < 2
    started = time.monotonic()
    for text in ("2", "latest", "nobody"):
        with pytest.raises(RegistryUnavailable, match="did not answer a moment ago"):
            await resolver.resolve(text)
    assert await resolver.resolve("1") == resolver.default
    assert time.monotonic() - started < 0.1

    registry.gate.set()
    clock.now += 5.1
    assert (await resolver.resolve("2")).number == "2"


# --- the description -----------------------------------------------------------------------------------------------


async def test_the_description_tells_whether_the_registry_answers(make, registry, clock):
    resolver = make()
    contract = Contract(resolver.default)
    assert (await describe(contract, resolver, {}, {}))["registry_reachable"]
    registry.away = True
    clock.now += 5.1
    described = await describe(contract, resolver, {}, {})
    assert not described["registry_reachable"]
    assert [each["version"] for each in described["versions"]] == ["2", "1"]
    registry.away = False
    clock.now += 5.1
    assert (await describe(contract, resolver, {}, {}))["registry_reachable"]


async def test_the_description_has_a_loaded_version_that_the_list_has_not_yet(make, place):
    place.register("newest")
    resolver = make(model="newest")
    contract = Contract(resolver.default)
    await describe(contract, resolver, {}, {})
    place.register("newest")
    await resolver.resolve("2")
    described = await describe(contract, resolver, {"1": VersionState.READY, "2": VersionState.READY}, {})
    assert [(each["version"], each["state"]) for each in described["versions"]] == [("2", "ready"), ("1", "ready")]
    assert described["versions_not_shown"] == 0


async def test_the_description_of_many_versions_leaves_a_thread_for_requests(place, monkeypatch):
    class Slow(Registry):
        def version(self, model, number, **options):
            time.sleep(0.2)
            return super().version(model, "1", **options)

        def summaries(self, model):
            (one,) = super().summaries(model)
            return [replace(one, number=str(number), aliases=()) for number in range(12, 0, -1)]

    place.register("many")
    address = RegistryAddress(place.uri, timeout_s=0.9)
    default = Registry(address).version("many", "1")
    resolver = Resolver(Slow(address), "many", default, ALL, address)
    page = asyncio.create_task(describe(Contract(default), resolver, {}, {}))
    await asyncio.sleep(0.1)
    await resolver.resolve("13")
    assert not page.done()
    assert {each["unavailable"] for each in (await page)["versions"]} == {None}
    assert resolver.reachable
    await resolver.aclose()


# --- the end -------------------------------------------------------------------------------------------------------


async def test_closing_ends_the_wait_of_whoever_still_waits(make, registry):
    resolver = make()
    registry.gate.clear()
    caller = asyncio.create_task(resolver.resolve("2"))
    await asyncio.sleep(0.05)
    await resolver.aclose()
    with pytest.raises(Draining):
        await caller
    with pytest.raises(Draining):
        await resolver.resolve("latest")
    assert await resolver.resolve(None) is resolver.default


def test_making_a_resolver_needs_no_event_loop_and_starts_no_thread(registry, place):
    default = Registry(registry.address).version("m", "1")
    before = set(threading.enumerate())
    Resolver(registry, "m", default, ALL, registry.address)
    assert set(threading.enumerate()) <= before


@pytest.mark.timeout(180)
async def test_a_real_server_may_hang_stop_and_come_back():
    server = await asyncio.to_thread(shared_server)
    address = RegistryAddress(server.uri, timeout_s=2, fresh_for_s=0.5)
    for _ in range(2):
        server.register("m")
    try:
        with impatient_http(address):
            registry = Registry(address)
            resolver = Resolver(registry, "m", registry.version("m", "1"), ALL, address)
            known = await resolver.resolve("latest")

            with server.hanging():
                await asyncio.sleep(0.6)
                started = time.monotonic()
                assert await resolver.resolve("latest") == known
                assert time.monotonic() - started < 1

            await asyncio.to_thread(server.stop)
            await asyncio.sleep(0.6)
            started = time.monotonic()
            assert await resolver.resolve("latest") == known
            with pytest.raises(RegistryUnavailable):
                await resolver.resolve("2")
            assert time.monotonic() - started < 3

            await asyncio.to_thread(server.start)
            assert (await resolver.resolve("2")).number == "2"
            await resolver.aclose()
    finally:
        await asyncio.to_thread(server.start)
