"""When the rows of several requests share a call of predict, and when they must not."""

import asyncio

import mlflow
import numpy as np
import pandas as pd
import pytest
from pydantic_core import from_json, to_json

from registry_serve.errors import PredictionFailed, VersionOverloaded
from registry_serve.policies import BatchPolicy
from tests.toys import Constant, Frame, Noting, WithParams

NUMBERS = pd.DataFrame({"x": [1.0, 3.0, 2.0]})
ONE_NUMBER = pd.DataFrame({"x": [1.0]})
TEXTS = pd.DataFrame({"prompt": ["hello", "good bye"]})
ONE_TEXT = pd.DataFrame({"prompt": ["hello"]})


def signature(example, params=None):
    return mlflow.models.infer_signature(example, [1.0], params=params)


@pytest.fixture
def noting(shelf, tmp_path):
    """Register a model that notes the sizes of its frames; gives its name and a function that reads them."""
    note = tmp_path / "sizes.txt"
    note.touch()

    def sizes():
        found = [int(line) for line in note.read_text().splitlines()]
        note.write_text("")
        return found

    def make(name, example=TEXTS, **options):
        shelf.log(name, Noting(str(note), **options), input_example=example, signature=signature(TEXTS))
        sizes()
        return name, sizes

    return make


async def ask(plane, *bodies, reference=None):
    """Send all bodies at the same time; gives what each was answered, or its error."""
    answers = await asyncio.gather(
        *(plane.predict(reference, to_json(body)) for body in bodies), return_exceptions=True
    )
    return [answer if isinstance(answer, Exception) else from_json(answer.body) for answer in answers]


async def merging(plane):
    """What ``/model`` says of the default version's batching."""
    described = await plane.describe()
    return next(each["loaded"]["batching"] for each in described["versions"] if each["loaded"])


async def test_requests_at_the_same_time_share_a_call_where_rows_are_independent(plane, noting):
    name, sizes = noting("merging_yes")
    async with plane(name) as made:
        sizes()
        answers = await ask(made, *({"prompt": f"p{number}"} for number in range(20)))
        assert answers == [[f"p{number}!"] for number in range(20)]
        assert sizes() == [20]
        told = await merging(made)
        assert (told["merges_requests"], told["reason"]) == (True, None)


async def test_each_request_gets_its_own_rows_back_however_many_it_brought(plane, noting):
    name, sizes = noting("merging_rows")
    async with plane(name) as made:
        sizes()
        bodies = [[{"prompt": f"{number}-{row}"} for row in range(number % 4 + 1)] for number in range(12)]
        assert await ask(made, *bodies) == [[f"{row['prompt']}!" for row in body] for body in bodies]
        assert sizes() == [sum(map(len, bodies))]


async def test_a_single_row_of_example_is_varied_to_find_out(plane, noting):
    name, _ = noting("merging_one_row", ONE_TEXT)
    async with plane(name) as made:
        assert (await merging(made))["reason"] is None


@pytest.mark.parametrize("how", ["rank", "share", "sort", "broadcast", "first", "count"])
@pytest.mark.parametrize("example", [NUMBERS, ONE_NUMBER], ids=["three rows", "one row"])
async def test_a_model_that_looks_at_the_whole_frame_answers_every_caller_alone(plane, shelf, how, example):
    name = f"frame_{how}_{len(example)}"
    shelf.log(name, Frame(how), input_example=example, signature=signature(NUMBERS))
    async with plane(name) as made:
        bodies = [{"x": float(number)} for number in range(10)]
        alone = [(await ask(made, body))[0] for body in bodies]
        assert await ask(made, *bodies) == alone
        told = await merging(made)
        assert not told["merges_requests"]
        reasons = {
            "rank": "it answers all rows of its input example alike, and variations of them",
            "share": "it answers all rows of its input example alike, and variations of them",
            "count": "it answers all rows of its input example alike, and variations of them",
            "first": "it does not answer with one value for each row",
            "sort": "it answers rows together otherwise than alone",
            "broadcast": "it answers rows together otherwise than alone",
        }
        assert told["reason"] == reasons[how]


async def test_a_model_that_never_answers_the_same_twice_is_not_merged(plane, shelf):
    shelf.log("merging_time", Frame("time"), input_example=NUMBERS, signature=signature(NUMBERS))
    async with plane("merging_time") as made:
        assert (await merging(made))["reason"] == "it answers rows together otherwise than alone"


async def test_without_an_example_nothing_is_merged(plane, noting):
    name, sizes = noting("merging_no_example", None)
    async with plane(name) as made:
        await ask(made, *[{"prompt": "a"}] * 3)
        assert sizes() == [1, 1, 1]
        assert (await merging(made))["reason"] == "it has no input example to try it with"


async def test_off_merges_nothing_and_on_merges_without_asking(plane, noting):
    name, sizes = noting("merging_by_hand", None)
    for mode, expected in (("off", [1, 1, 1]), ("on", [3])):
        async with plane(name, batching=mode) as made:
            await ask(made, *[{"prompt": "a"}] * 3)
            assert sizes() == expected


async def test_one_bad_request_fails_alone(plane, noting):
    name, sizes = noting("merging_bad")
    async with plane(name) as made:
        sizes()
        answers = await ask(made, {"prompt": "a"}, {"prompt": "bad"}, {"prompt": "c"})
        assert [answers[0], answers[2]] == [["a!"], ["c!"]]
        assert isinstance(answers[1], PredictionFailed)
        assert sizes() == [3, 1, 1, 1]
        assert (await merging(made))["merges_requests"]


async def test_a_model_that_fails_only_on_rows_together_is_merged_no_more(plane, noting):
    name, sizes = noting("merging_too_large", most=4)
    async with plane(name) as made:
        sizes()
        for _ in range(2):
            assert await ask(made, *[{"prompt": "a"}] * 5) == [["a!"]] * 5
        assert sizes() == [5, *[1] * 10]
        assert (await merging(made))["reason"] == "it raised on rows together that it answered alone"


async def test_requests_with_different_params_never_share_a_call(plane, shelf):
    params = {"temperature": 0.5}
    shelf.log("merging_params", WithParams(), input_example=(TEXTS, params), signature=signature(TEXTS, params))
    async with plane("merging_params") as made:
        bodies = [{"inputs": {"prompt": "a"}, "params": {"temperature": value}} for value in (0.1, 0.5, 0.1, 0.9)]
        answers = await ask(made, *bodies, {"prompt": "a"})
        temperatures = [from_json(answer[0]["text"])["temperature"] for answer in answers]
        assert temperatures == [0.1, 0.5, 0.1, 0.9, 0.5]


async def test_tensors_of_several_requests_are_joined_along_their_first_dimension(plane, shelf):
    example = np.arange(6, dtype=np.float32).reshape(3, 2)

    class Sums(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input.sum(axis=1)

    shelf.log("merging_tensors", Sums(), input_example=example, signature=mlflow.models.infer_signature(example))
    async with plane("merging_tensors") as made:
        assert (await merging(made))["reason"] is None
        answers = await ask(made, {"inputs": [[1, 2], [3, 4]]}, {"inputs": [[5, 6]]})
        assert answers == [[3.0, 7.0], [11.0]]


async def test_what_one_load_has_found_out_the_next_one_knows(plane, noting, shelf):
    name, sizes = noting("merging_known")
    noting(name)
    noting(name)
    async with plane(name) as made:
        sizes()
        for version in ("2", "3"):
            await ask(made, {"prompt": "a"}, reference=version)
        assert sizes()[-1] == 1
        await ask(made, {"prompt": "a"}, reference="2")
        assert (sizes(), made.cache.loads) == ([1], 4)


async def test_the_queue_of_one_version_is_bounded_and_leaves_room_for_others(plane, noting):
    name, _ = noting("merging_full")
    noting(name)
    async with plane(name, batching=BatchPolicy(max_waiting=3)) as made:
        await ask(made, {"prompt": "a"}, reference="2")
        first = asyncio.ensure_future(ask(made, {"prompt": "wait"}))
        await asyncio.sleep(0.1)
        waiting = asyncio.ensure_future(ask(made, *[{"prompt": "a"}] * 5))
        await asyncio.sleep(0.05)
        assert await ask(made, {"prompt": "b"}, reference="2") == [["b!"]]
        assert await first == [["wait!"]]
        answers = await waiting
        assert sum(isinstance(answer, VersionOverloaded) for answer in answers) == 2
        assert answers.count(["a!"]) == 3


async def test_a_constant_of_the_right_length_by_chance_is_found_out(plane, shelf):
    shelf.log("merging_constant", Constant([1, 2, 3]), input_example=NUMBERS, signature=signature(NUMBERS))
    async with plane("merging_constant") as made:
        assert (await merging(made))["reason"] == "it does not answer with one value for each row"


@pytest.mark.slow
async def test_a_language_model_that_reads_only_the_first_row_answers_every_caller(plane, demo_registry):
    prompts = [f"What is {what}?" for what in ("machine learning", "MLflow", "Ray")] * 3
    bodies = [{"inputs": {"prompt": prompt}, "params": {"temperature": 0.0, "max_tokens": 20}} for prompt in prompts]
    async with plane("instruct_llm", uri=demo_registry.tracking_uri) as made:
        alone = [(await ask(made, body))[0] for body in bodies[:3]]
        assert len({to_json(answer) for answer in alone}) == 3
        assert await ask(made, *bodies) == alone * 3
        assert not (await merging(made))["merges_requests"]


@pytest.mark.slow
async def test_a_translator_answers_many_callers_at_once(plane, demo_registry):
    prompts = ["Good morning.", "Thank you very much.", "The weather is lovely today."] * 4
    async with plane("translation_model", uri=demo_registry.tracking_uri) as made:
        alone = [(await ask(made, {"prompt": prompt}))[0] for prompt in prompts[:3]]
        calls = made.status()["calls"]
        assert await ask(made, *({"prompt": prompt} for prompt in prompts)) == alone * 4
        assert (await merging(made))["merges_requests"]
        assert made.status()["calls"] == calls + 1


async def test_one_example_is_varied_until_two_rows_are_answered_differently(plane, shelf):
    example = pd.DataFrame({"prompt": ["hello my friend"]})
    shelf.log("merging_words", Frame("words"), input_example=example, signature=signature(TEXTS))
    async with plane("merging_words") as made:
        assert (await merging(made))["merges_requests"]


@pytest.mark.parametrize("how", ["label", "scale"])
async def test_rows_that_are_answered_alike_prove_nothing(plane, shelf, how):
    alike = pd.DataFrame({"x": [1.0, 1.5, 2.0]})
    shelf.log(f"alike_{how}", Frame(how), input_example=alike, signature=signature(NUMBERS))
    async with plane(f"alike_{how}") as made:
        bodies = [{"x": value} for value in (1.0, 9.0, 2.0, 9.0)]
        alone = [(await ask(made, body))[0] for body in bodies]
        assert await ask(made, *bodies) == alone
        assert not (await merging(made))["merges_requests"]


async def test_an_answer_that_cannot_be_told_fails_alone(plane, shelf):
    class Odd(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            class Untellable:
                def tolist(self):
                    raise RuntimeError("a secret")

            return [Untellable() if value == "odd" else f"{value}!" for value in model_input["prompt"]]

    shelf.log("merging_odd", Odd(), input_example=TEXTS, signature=signature(TEXTS))
    async with plane("merging_odd") as made:
        answers = await ask(made, {"prompt": "a"}, {"prompt": "odd"}, {"prompt": "c"})
        assert [answers[0], answers[2]] == [["a!"], ["c!"]]
        assert isinstance(answers[1], PredictionFailed)
