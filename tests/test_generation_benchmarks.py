"""The arithmetic of the benchmarks of generation, and one small run of all of it. Nothing here is timed."""

import importlib.util
import json
import multiprocessing

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.generation import figures, lengths, report
from benchmarks.generation.__main__ import app
from benchmarks.generation.clients import Answered, by_chance, in_turn
from benchmarks.generation.models import Shape, running
from benchmarks.generation.replicas import answers_of

TINY = Shape(32, 1, 64, context=64, prompt=8, answer=4, long=6)
SIZES = ["--hidden", "32", "--layers", "1", "--vocab", "64", "--device", "cpu"]

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="it does not fail where it is")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def answered(*times, prompt=512, asked_at=0.0):
    return Answered(prompt, asked_at, list(times))


def test_throughput_is_from_the_first_request_to_the_last_token():
    told = figures.summary([answered(1, 2, 3, asked_at=0.5), answered(4, 4.5, asked_at=2)])
    assert (told["requests_per_s"], told["tokens_per_s"]) == (0.5, 1.2)
    assert told["seconds"] == 4
    assert told["first_p95_ms"] == 2000
    assert told["gap_p95_ms"] == 1000


def test_answers_of_one_token_have_no_time_between_tokens():
    assert figures.summary([answered(1)])["gap_p95_ms"] is None


def test_a_promise_is_kept_by_prompts_read_in_time_and_answers_that_never_become_slow():
    assert figures.kept(answered(1.0, 1.1, 1.2), 6)
    assert not figures.kept(answered(1.01, 1.1, 1.2), 6)  # 512 tokens have a second
    assert figures.kept(answered(1.01, prompt=1024), 6)
    assert figures.kept(answered(0.5, 0.9, 1.3), 2)
    assert not figures.kept(answered(0.5, 0.9, 1.3), 4)


def test_the_moving_average_weighs_sixteen_tokens():
    assert figures.slowest([]) == 0
    assert figures.slowest([0.1, 0.1, 0.1]) == pytest.approx(0.1)
    # One pause of a second after many tokens counts for two seventeenths; a pause that is the first counts in full.
    assert figures.slowest([0.0] * 20 + [1.0]) == pytest.approx(2 / 17)
    assert figures.slowest([1.0] + [0.0] * 20) == 1
    lasting = figures.slowest([0.0] + [1.0] * 40)
    assert 0.95 < lasting < 1


def test_effective_throughput_counts_only_those_that_keep_it():
    answers = [answered(0.5, 0.6), answered(1.5, 2.0), answered(0.9, 2.0)]
    assert figures.effective(answers, 2) == 0.5 / 1
    assert figures.effective(answers[:1], 2) == pytest.approx(1 / 0.6, abs=0.001)


def test_lengths_are_distributed_as_they_are_called():
    random = np.random.default_rng(0)
    similar = lengths.similar(random, 100, 4000)
    exponential = lengths.exponential(random, 100, 4000)
    assert (similar.mean(), similar.std()) == (pytest.approx(100, rel=0.03), pytest.approx(30, rel=0.05))
    assert (exponential.mean(), exponential.std()) == (pytest.approx(100, rel=0.05), pytest.approx(100, rel=0.05))
    assert set(lengths.equal(random, 100, 5)) == {100}
    assert lengths.whole(np.array([-3.0, 0.2, 7.6, 900.0]), 32) == [1, 1, 8, 32]


def test_the_same_seed_draws_the_same_requests_and_they_fit():
    requests = lengths.drawn(TINY, 50, lengths.exponential, TINY.long)
    assert requests == lengths.drawn(TINY, 50, lengths.exponential, TINY.long)
    assert requests != lengths.drawn(TINY, 50, lengths.exponential, TINY.long, seed=1)
    assert all(len(each.prompt) + each.new_tokens <= TINY.context for each in requests)
    assert all(0 < token < TINY.vocabulary for each in requests for token in each.prompt)


@pytest.mark.parametrize("name", ["continuous", "static", "one"])
async def test_every_engine_answers_what_was_asked_in_whichever_way(name):
    requests = lengths.drawn(TINY, 6, lengths.similar, TINY.answer)
    with running(name, TINY.model("cpu"), TINY) as engine:
        for answers in (await in_turn(engine, requests, 2), await by_chance(engine, requests, 200)):
            assert sorted(len(each.times) for each in answers) == sorted(each.new_tokens for each in requests)
            assert all(each.asked_at < each.times[0] and each.times == sorted(each.times) for each in answers)


def test_processes_share_the_requests_and_end():
    requests = lengths.drawn(TINY, 5, lengths.equal, 3)
    answers = answers_of(2, "static", TINY, "cpu", 1, requests, 4)
    assert sorted(each.prompt for each in answers) == sorted(len(each.prompt) for each in requests)
    assert multiprocessing.active_children() == []


@without_vllm
def test_a_process_that_ends_without_an_answer_is_waited_for_no_longer():
    with pytest.raises(RuntimeError, match="process 0 has ended with 1 and told nothing"):
        answers_of(1, "vllm", TINY, "cpu", 1, lengths.drawn(TINY, 2, lengths.equal, 3), 1)
    assert multiprocessing.active_children() == []


@without_vllm
def test_an_engine_that_fails_costs_nothing_that_others_did(tmp_path):
    (tmp_path / "generation.md").write_text("<!-- results -->\n<!-- end of results -->\n")
    ran = CliRunner().invoke(
        app, [*SIZES, "--requests", "16", "--quick", "--engines", "vllm,continuous", "--docs", str(tmp_path)]
    )
    assert ran.exit_code == 1
    page = (tmp_path / "generation.md").read_text()
    assert "| continuous batching | 32 |" in page
    assert "| exponential |" in page
    assert "| vLLM | in one process | HandlerInvalid: " in page
    (failed,) = json.loads((tmp_path / "generation.json").read_text())["results"]["failed"]
    assert "pip install vllm" in failed["error"]


def test_a_run_writes_its_tables_into_the_page_and_the_rest_beside_it(tmp_path):
    (tmp_path / "generation.md").write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    ran = CliRunner().invoke(app, [*SIZES, "--requests", "16", "--quick", "--docs", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    page = (tmp_path / "generation.md").read_text()
    assert page.startswith("before\n<!-- results -->\n")
    assert page.endswith("<!-- end of results -->\nafter\n")
    assert "old" not in page
    assert "| exponential |" in page
    assert "| continuous batching | 32 |" in page
    found = json.loads((tmp_path / "generation.json").read_text())["results"]
    assert [(each["engine"], each["clients"]) for each in found["clients"]] == [
        (name, clients) for name in ("static", "continuous", "one") for clients in (1, 8, 32)
    ]
    load = pytest.approx(0.7 * found["at_once"][0]["requests_per_s"], abs=0.001)
    assert [(each["engine"], each["load"]) for each in found["by_chance"]] == [("static", load), ("continuous", load)]


def test_the_table_of_processes_shows_what_keeps_the_promises():
    record = {"engine": "static", "replicas": 2, "requests_per_s": 3.0}
    rates = {f"effective_at_{rate}": 3.0 - rate / 4 for rate in figures.TOKENS_PER_S}
    assert list(report.replicas([record | rates]).columns[-1].cells) == ["1.50"]


def test_an_unknown_engine_is_named():
    ran = CliRunner().invoke(app, ["--engines", "fast"])
    assert ran.exit_code == 2
    assert "fast" in ran.output
