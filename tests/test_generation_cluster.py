"""Language models on a real cluster, over real HTTP: every front, clients that leave, what never fits."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import requests
from ray import serve

from registry_serve import deployment_from_handler
from tests import language_models
from tests.generated import greedy
from tests.language_models import one_thread  # noqa: F401

pytestmark = pytest.mark.cluster

NAME = "storyteller"
CACHE_TOKENS = 1024
PROMPTS = ["The river", "A boat came down the river and", "night", "Größe"]
TALK = [{"role": "user", "content": "The river"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    # A longer context than its cache holds, so that there are requests that never fit, and streams worth leaving.
    return language_models.llama(tmp_path_factory.mktemp("llama"), context=4096)


@pytest.fixture(scope="module")
def url(cluster, llama):
    """A language model on one replica."""
    parameters = {"task": "text-generation", "model_name_or_path": llama, "model_dtype": "fp32"}
    made = deployment_from_handler(
        name=NAME, model_parameters={**parameters, "engine": "continuous", "cache_tokens": CACHE_TOKENS}
    )
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    made = made.options(ray_actor_options={"num_cpus": 0.5, "runtime_env": environment})
    serve.run(made.bind(), name=NAME, route_prefix=f"/{NAME}")
    yield f"{cluster.address}/{NAME}"
    serve.delete(NAME)


@pytest.fixture
def client(url):
    return openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)


def engine(url):
    """How many requests the model has under way, and how many answers its engine holds."""
    loaded = requests.get(f"{url}/model", timeout=30).json()["versions"][0]["loaded"]["generation"]
    return loaded["under_way"], loaded["engines"][0]["answering"]


def test_every_front_gives_what_the_model_itself_gives(url, client, llama):
    parameters = {"temperature": 0, "max_new_tokens": 10, "return_full_text": False}
    expected = [greedy(llama, prompt, 10) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    answer = client.completions.create(model=NAME, prompt=PROMPTS, temperature=0, max_tokens=10)
    assert [choice.text for choice in answer.choices] == expected
    body = {"inputs": PROMPTS, "parameters": parameters}
    assert requests.post(f"{url}/predict", json=body, timeout=60).json() == {"outputs": expected}
    for prompt, text in zip(PROMPTS, expected, strict=True):
        lines = requests.post(f"{url}/predict_stream", json={"inputs": [prompt], "parameters": parameters}, timeout=60)
        assert "".join(map(json.loads, lines.text.splitlines())) == text
        parts = client.completions.create(model=NAME, prompt=prompt, temperature=0, max_tokens=10, stream=True)
        assert "".join(part.choices[0].text for part in parts) == text
    chat = client.chat.completions.create(model=NAME, messages=TALK, temperature=0, max_tokens=10)
    assert chat.choices[0].message.content == greedy(llama, TALK, 10)
    assert [model.id for model in client.models.list()] == [NAME]


def test_pieces_come_while_the_answer_is_made(client):
    stream = client.chat.completions.create(
        model=NAME, messages=TALK, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
    )
    times = [time.monotonic() for _ in stream]
    assert times[-1] - times[0] > 5 * (times[1] - times[0])
    assert len(times) > 100


def leave(url, stream):
    """Begin an answer that would go on for long, and leave it."""
    body = {"model": NAME, "prompt": "The river", "max_tokens": 900, "ignore_eos": True, "stream": stream}
    with httpx.Client(timeout=60) as http:
        if stream:
            with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
                assert answer.status_code == 200
                next(answer.iter_lines())
            return
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"{url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=1.0))


def test_clients_that_leave_give_their_places_back(url, client, llama):
    with ThreadPoolExecutor(50) as clients:
        list(clients.map(lambda number: leave(url, stream=number % 10 != 0), range(50)))
    left = time.monotonic()
    while engine(url) != (0, 0):
        assert time.monotonic() - left < 3
        time.sleep(0.05)
    answer = client.completions.create(model=NAME, prompt="The river", temperature=0, max_tokens=8)
    assert answer.choices[0].text == greedy(llama, "The river", 8)


def test_a_request_that_can_never_fit_disturbs_nobody(url, client, llama):
    answers = []

    def ask():
        answers.append(client.completions.create(model=NAME, prompt="The river", temperature=0, max_tokens=60))

    others = [threading.Thread(target=ask) for _ in range(8)]
    for other in others:
        other.start()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="A boat", max_tokens=CACHE_TOKENS * 2)
    assert caught.value.code == "too_many_tokens"
    refused = requests.post(f"{url}/predict", json={"inputs": ["A boat"], "max_new_tokens": 2000}, timeout=60)
    assert (refused.status_code, refused.json()["limit_tokens"]) == (400, CACHE_TOKENS)
    for other in others:
        other.join()
    assert {answer.choices[0].text for answer in answers} == {greedy(llama, "The river", 60)}
    assert len(answers) == 8
