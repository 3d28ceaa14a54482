"""The queue alone, with batches that are computed when a test says so."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry_serve.batching import Batcher
from registry_serve.errors import ConfigurationError, VersionOverloaded
from registry_serve.policies import BatchPolicy


class Press:
    """Computes batches in one thread, each only when it is let go."""

    def __init__(self, **policy):
        self.batches: list[list[str]] = []
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.held = 0
        self.error: BaseException | None = None
        self.executor = ThreadPoolExecutor(1)
        self.batcher = Batcher(self.compute, self.executor, BatchPolicy(**policy), self.hold)

    def compute(self, batch):
        self.batches.append([waiting.item for waiting in batch])
        self.begun.release()
        assert self.gate.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return [ValueError(each.item) if each.item.startswith("bad") else each.item.upper() for each in batch]

    def hold(self, item):
        self.held += 1

        def release():
            self.held -= 1

        return release

    def submit(self, item, **options):
        options.setdefault("group", "same")
        return asyncio.ensure_future(self.batcher.submit(item, **options))

    async def until_busy(self):
        await asyncio.to_thread(self.begun.acquire, timeout=10)

    def let_go(self, times=1):
        self.gate.release(times)


@pytest.fixture
def press():
    made = []

    def make(**policy):
        made.append(Press(**policy))
        return made[-1]

    yield make
    for each in made:
        each.let_go(100)
        each.executor.shutdown()


async def busy(press, **policy):
    """A press that computes ``first`` until it is let go."""
    made = press(**policy)
    first = made.submit("first")
    await made.until_busy()
    return made, first


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_model_takes_a_request_at_once_and_alone(press):
    made, first = await busy(press)
    made.let_go()
    assert await first == "FIRST"
    assert made.batches == [["first"]]


async def test_what_gathers_while_the_model_is_busy_goes_together(press):
    made, first = await busy(press)
    others = [made.submit(item) for item in "abc"]
    await settle()
    made.let_go(2)
    assert await asyncio.gather(first, *others) == ["FIRST", "A", "B", "C"]
    assert made.batches == [["first"], ["a", "b", "c"]]


async def test_requests_that_arrive_together_go_together(press):
    made = press()
    both = [made.submit("a"), made.submit("b")]
    made.let_go(2)
    assert await asyncio.gather(*both) == ["A", "B"]
    assert made.batches == [["a", "b"]]


async def test_only_requests_of_the_oldest_ones_group_join_it_and_the_others_keep_their_order(press):
    made, first = await busy(press)
    waiting = [made.submit(item, group=group) for item, group in [("a", 1), ("b", 2), ("c", 1), ("d", None), ("e", 2)]]
    await settle()
    made.let_go(5)
    await asyncio.gather(first, *waiting)
    assert made.batches == [["first"], ["a", "c"], ["b", "e"], ["d"]]


async def test_requests_without_a_group_go_alone(press):
    made, first = await busy(press)
    waiting = [made.submit(item, group=None) for item in "ab"]
    await settle()
    made.let_go(3)
    await asyncio.gather(first, *waiting)
    assert made.batches == [["first"], ["a"], ["b"]]


async def test_a_batch_counts_rows_and_never_cuts_a_request(press):
    made, first = await busy(press, max_batch_size=4)
    waiting = [made.submit(item, rows=rows) for item, rows in [("a", 3), ("b", 2), ("c", 1), ("d", 9), ("e", 2)]]
    await settle()
    made.let_go(5)
    await asyncio.gather(first, *waiting)
    assert made.batches == [["first"], ["a", "c"], ["b", "e"], ["d"]]


async def test_a_cancelled_request_leaves_the_queue_and_is_never_computed(press):
    made, first = await busy(press)
    gone, stays = made.submit("gone"), made.submit("stays")
    await settle()
    assert len(made.batcher) == 2
    gone.cancel()
    await settle()
    assert len(made.batcher) == 1
    made.let_go(2)
    assert await asyncio.gather(first, stays) == ["FIRST", "STAYS"]
    assert made.batches == [["first"], ["stays"]]


async def test_a_deadline_drops_what_nobody_waits_for_any_more(press):
    made, first = await busy(press)
    with pytest.raises(TimeoutError):
        await made.submit("late", timeout_s=0.01)
    assert len(made.batcher) == 0
    made.let_go()
    await first
    assert made.batches == [["first"]]


async def test_work_that_has_begun_goes_on_without_its_caller_and_keeps_the_model_open(press):
    made, first = await busy(press)
    first.cancel()
    await settle()
    assert made.held == 1
    next_one = made.submit("next")
    made.let_go(2)
    assert await next_one == "NEXT"
    await settle()
    assert made.held == 0


async def test_the_queue_is_bounded_and_says_so(press):
    made, first = await busy(press, max_waiting=2)
    waiting = [made.submit("a"), made.submit("b")]
    await settle()
    with pytest.raises(VersionOverloaded) as full:
        await made.batcher.submit("c", group="same")
    assert (full.value.status, full.value.retry_after) == (429, 1)
    made.let_go(2)
    assert await asyncio.gather(first, *waiting) == ["FIRST", "A", "B"]


async def test_each_request_gets_its_own_outcome(press):
    made, first = await busy(press)
    waiting = [made.submit(item) for item in ("a", "bad", "c")]
    await settle()
    made.let_go(2)
    outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert [str(each) for each in outcomes] == ["FIRST", "A", "bad", "C"]
    assert isinstance(outcomes[2], ValueError)


async def test_a_computation_that_breaks_is_told_to_all_of_its_batch_and_the_queue_goes_on(press):
    made, first = await busy(press)
    made.error = RuntimeError("broken")
    made.let_go()
    with pytest.raises(RuntimeError, match="broken"):
        await first
    made.error = None
    made.let_go()
    assert await made.submit("a") == "A"


async def test_a_free_model_waits_for_more_requests_only_where_the_policy_says_so(press):
    made = press(max_wait_ms=5000, max_batch_size=2)
    one = made.submit("a")
    await asyncio.sleep(0.05)
    assert made.batches == []
    two = made.submit("b")
    made.let_go()
    assert await asyncio.gather(one, two) == ["A", "B"]
    assert made.batches == [["a", "b"]]


async def test_a_batch_that_does_not_fill_up_goes_when_its_oldest_has_waited(press):
    made = press(max_wait_ms=20)
    made.let_go()
    assert await asyncio.wait_for(made.submit("a"), 5) == "A"


async def test_the_time_of_the_present_batch_is_known(press):
    made, first = await busy(press)
    await asyncio.sleep(0.01)
    assert made.batcher.busy_s >= 0.01
    made.let_go()
    await first
    assert made.batcher.busy_s == 0


@pytest.mark.parametrize(
    "wrong", [{"mode": "maybe"}, {"max_batch_size": 0}, {"max_wait_ms": -1}, {"max_waiting": 0}], ids=str
)
def test_a_policy_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigurationError):
        BatchPolicy(**wrong)
