"""The native front over ASGI: every status, every header, and an OpenAPI document that tells the truth."""

import asyncio
import json

import jsonschema
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from registry_serve import errors
from registry_serve.errors import (
    ConfigurationError,
    DeploymentUnavailable,
    GenerationUnsupported,
    ModelNotFound,
    ModelNotServed,
    RegistryServeError,
    StreamingUnsupported,
)
from registry_serve.protocols.gate import ApiKeys
from tests.test_api import tree
from tests.toys import Constant, WithParams

PROBLEM = {"type", "title", "status", "detail", "code", "error", "request_id"}


def assert_problem(response, status, code, **members):
    """The one shape of every error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told.keys() >= PROBLEM
    assert (told["status"], told["code"]) == (status, code)
    assert told["type"] == f"urn:registry-serve:error:{code}"
    assert told["error"] == told["detail"]
    assert told["request_id"] == response.headers["x-request-id"]
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    for name, value in members.items():
        assert told[name] == value
    return told


#: Errors that no prediction is answered with.
NO_ANSWERS = {
    RegistryServeError,
    *(
        each
        for kind in (errors.ConfigurationError, errors.EndpointFailed, errors.WarmUpFailed, errors.ReplicaStuck)
        for each in tree(kind)
    ),
}


@pytest.mark.parametrize("path", ["/serve", "/serve/"])
async def test_rows_are_answered_in_a_list(client, path):
    async with client() as http:
        one = await http.post(path, json={"prompt": "a"})
        assert (one.status_code, one.json()) == (200, [{"text": "one:a"}])
        assert one.headers["serve-model-version"] == "1"
        assert one.headers["content-type"] == "application/json"
        many = await http.post(path, json=[{"prompt": "a"}, {"prompt": "b"}])
        assert many.json() == [{"text": "one:a"}, {"text": "one:b"}]
        enveloped = await http.post(path, json={"inputs": [{"prompt": "a"}]})
        assert enveloped.json() == [{"text": "one:a"}]


@pytest.mark.parametrize("header", ["serve_multiplexed_model_id", "serve-multiplexed-model-id"])
async def test_the_version_comes_in_a_header_or_in_the_path(client, header):
    async with client() as http:
        for response in (
            await http.post("/serve", json={"prompt": "a"}, headers={header: "2"}),
            await http.post("/versions/2/serve", json={"prompt": "a"}),
            await http.post("/versions/@challenger/serve/", json={"prompt": "a"}),
            await http.post("/versions/2/serve", json={"prompt": "a"}, headers={header: "02"}),
        ):
            assert (response.status_code, response.headers["serve-model-version"]) == (200, "2")
            assert response.json() == [{"text": "two:a"}]


async def test_two_different_versions_in_one_request_are_refused(client):
    async with client() as http:
        both = await http.post("/versions/2/serve", json={"prompt": "a"}, headers={"serve_multiplexed_model_id": "1"})
        assert_problem(both, 400, "version_reference_conflict")
        headers = {"serve_multiplexed_model_id": "1", "serve-multiplexed-model-id": "2"}
        assert_problem(
            await http.post("/serve", json={"prompt": "a"}, headers=headers), 400, "version_reference_conflict"
        )


async def test_every_client_error_has_its_status_and_members(client):
    async with client(max_body_bytes=1000) as http:

        async def post(content, version=""):
            return await http.post("/serve", content=content, headers={"serve_multiplexed_model_id": version})

        good = b'{"prompt": "a"}'
        assert_problem(await post(b'{"prompt": a}'), 400, "malformed_json", position={"line": 1, "column": 12})
        assert_problem(await post(b""), 400, "malformed_json")
        told = assert_problem(await post(good, "99"), 404, "version_not_found", requested_version="99")
        assert told["available"] == ["@challenger", "@champion", "6", "5", "4", "3", "2", "1"]
        assert_problem(await post(good, "@nobody"), 404, "version_not_found", requested_version="@nobody")
        told = assert_problem(await post(good, "3"), 409, "signature_conflict")
        assert (told["requested_version"], told["default_version"]) == ("3", "1")
        assert {"where", "column", "expected", "found"} <= told["differences"][0].keys()
        assert_problem(await post(b"x" * 1001), 413, "body_too_large", limit_bytes=1000)
        told = assert_problem(await post(b'{"prompt": 5, "other": 1}'), 422, "invalid_request")
        assert told["errors"] == [
            {"location": ["prompt"], "message": "must be a string"},
            {"location": ["other"], "message": "is not in the model's signature"},
        ]
        assert_problem(await post(good, "5"), 500, "load_failed")
        assert_problem(await post(b'{"prompt": "raise"}'), 500, "prediction_failed")
        assert_problem(await http.get("/nothing"), 404, "not_found")
        assert_problem(await http.get("/serve"), 405, "method_not_allowed")


async def test_a_body_without_a_length_is_cut_at_the_limit(client):
    async def endless():
        for _ in range(100):
            yield b"x" * 100

    async with client(max_body_bytes=1000) as http:
        assert_problem(await http.post("/serve", content=endless()), 413, "body_too_large")


async def test_a_body_that_takes_too_long_gives_its_place_back(client):
    async def slow():
        yield b'{"prompt": '
        await asyncio.sleep(60)

    async with client(request_timeout_s=1, max_pending_requests=1) as http:
        assert_problem(await http.post("/serve", content=slow()), 408, "body_timeout")
        assert (await http.post("/serve", json={"prompt": "a"})).status_code == 200


async def test_waiting_errors_say_when_to_come_back(client):
    async with client(max_pending_requests=1, request_timeout_s=0.5) as http:
        slow = asyncio.create_task(http.post("/serve", json={"prompt": "sleep 1"}))
        await asyncio.sleep(0.1)
        busy = await http.post("/serve", json={"prompt": "a"})
        assert_problem(busy, 429, "too_many_requests")
        assert busy.headers["retry-after"] == "1"
        assert_problem(await slow, 504, "prediction_timeout")
        loading = await http.post("/versions/4/serve", json={"prompt": "a"})
        assert_problem(loading, 503, "version_loading")
        assert loading.headers["retry-after"] == "5"


async def test_a_draining_replica_says_so(client):
    async with client() as http:
        await http.plane.aclose()
        assert_problem(await http.post("/serve", json={"prompt": "a"}), 503, "draining")
        assert (await http.get("/health/ready")).status_code == 503
        assert (await http.get("/health/live")).status_code == 200


async def test_server_errors_are_logged_with_their_cause_under_the_request_id(client, caplog):
    async with client() as http:
        failed = await http.post("/serve", json={"prompt": "raise"}, headers={"x-request-id": "call-7"})
    assert_problem(failed, 500, "prediction_failed", request_id="call-7")
    assert "call-7" in caplog.text
    assert "a secret in /srv/models" in caplog.text


async def test_an_unexpected_error_is_told_without_its_cause(client, monkeypatch):
    async with client() as http:

        async def fail(*args):
            raise KeyError("secret")

        monkeypatch.setattr(http.plane, "predict", fail)
        assert_problem(await http.post("/serve", json={"prompt": "a"}), 500, "internal_error")


async def test_every_answer_carries_a_request_id(client):
    async with client() as http:
        given = await http.post("/serve", json={"prompt": "a"}, headers={"x-request-id": "abc-1"})
        assert given.headers.get_list("x-request-id") == ["abc-1"]
        made = await http.post("/serve", json={"prompt": "a"}, headers={"x-request-id": "not a plain word"})
        assert len(made.headers["x-request-id"]) == 36


async def test_with_keys_everything_but_health_needs_one(client):
    async with client(keys=ApiKeys(["first", "second"])) as http:
        for path in ("/model", "/docs", "/openapi.json", "/nothing"):
            assert_problem(await http.get(path), 401, "unauthenticated")
        refused = await http.post("/serve", content=b"{bad", headers={"serve_multiplexed_model_id": "99"})
        assert_problem(refused, 401, "unauthenticated")
        assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in ("", "third", "Bearer third", "Bearer", "firs", "first second"):
            response = await http.post("/serve", json={"prompt": "a"}, headers={"authorization": wrong})
            assert_problem(response, 401, "unauthenticated")
        for right in ("first", "Bearer second", "bearer first"):
            response = await http.post("/serve", json={"prompt": "a"}, headers={"authorization": right})
            assert response.status_code == 200
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).json() == {"status": "ready"}


async def test_a_page_of_another_site_is_refused(client):
    async with client() as http:
        foreign = await http.post("/serve", json={"prompt": "a"}, headers={"origin": "https://elsewhere.test"})
        assert_problem(foreign, 403, "foreign_origin")
        broken = await http.post("/serve", json={"prompt": "a"}, headers={"origin": "http://["})
        assert_problem(broken, 403, "foreign_origin")
        own = await http.post("/serve", json={"prompt": "a"}, headers={"origin": "http://serve.test"})
        assert own.status_code == 200


def test_a_key_file_is_read_line_by_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# for the batch job\nalpha\n\n  beta \n")
    keys = ApiKeys.read(file)
    assert keys.open("alpha")
    assert keys.open("Bearer beta")
    assert not keys.open("# for the batch job")
    file.write_text("# nobody\n")
    for path in (file, tmp_path / "missing"):
        with pytest.raises(ConfigurationError):
            ApiKeys.read(path)


async def test_a_foreign_version_is_forbidden_by_the_policy(client):
    async with client(versions=[1]) as http:
        assert_problem(await http.post("/versions/2/serve", json={"prompt": "a"}), 403, "version_forbidden")


async def test_the_model_page_describes_the_model(client):
    async with client() as http:
        described = (await http.get("/model")).json()
    assert described["name"] == "toy"
    assert described["signature"]["inputs"] == [{"name": "prompt", "type": "string", "required": True}]
    assert described["replica"]["ready"] is True
    assert {each["version"] for each in described["versions"]} == {"1", "2", "3", "4", "5", "6"}


async def test_params_are_documented_and_arrive(client, shelf):
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]),
        outputs=Schema([ColSpec("string", "text")]),
        params=ParamSchema([ParamSpec("temperature", "double", 0.1), ParamSpec("max_tokens", "long", 1000)]),
    )
    version = shelf.log("with_params", WithParams(), signature=signature)
    async with client("with_params", version) as http:
        given = await http.post("/serve", json={"inputs": {"prompt": "a"}, "params": {"temperature": 1}})
        assert json.loads(given.json()[0]["text"]) == {"max_tokens": 1000, "temperature": 1.0}
        unknown = await http.post("/serve", json={"inputs": {"prompt": "a"}, "params": {"top_p": 1}})
        assert_problem(unknown, 422, "invalid_request")
        schemas = (await http.get("/openapi.json")).json()["components"]["schemas"]
    assert schemas["Params"]["properties"]["temperature"]["default"] == 0.1
    assert schemas["Params"]["properties"]["max_tokens"]["default"] == 1000


async def test_openapi_shows_the_contract_with_the_models_own_example(client):
    async with client() as http:
        document = (await http.get("/openapi.json")).json()
    row = document["components"]["schemas"]["Row"]
    assert row["properties"] == {"prompt": {"type": ["string", "null"]}}
    assert row["required"] == ["prompt"]
    assert document["components"]["schemas"]["Answer"]["items"]["required"] == ["text"]
    posted = document["paths"]["/serve"]["post"]
    assert posted["requestBody"]["content"]["application/json"]["examples"]["one row"]["value"] == {"prompt": "hello"}
    told = posted["responses"]
    assert "200" in told
    elsewhere = {StreamingUnsupported, GenerationUnsupported, ModelNotServed, DeploymentUnavailable}
    for error in set(tree()) - NO_ANSWERS - elsewhere:
        assert f"`{error.code}`" in told[str(error.status)]["description"]
    for path in ("/predict_stream", "/serve/stream", "/versions/{version}/serve/stream"):
        streamed = document["paths"][path]["post"]["responses"]
        assert "`streaming_unsupported`" in streamed["501"]["description"]
    completions = document["paths"]["/v1/completions"]["post"]["responses"]
    assert GenerationUnsupported.title in completions["501"]["description"]
    assert ModelNotServed.title in completions["404"]["description"]


SIGNATURES = {
    "columns": (Schema([ColSpec("string", "a b"), ColSpec("long", "n", required=False)]), pd.DataFrame({"a b": ["x"]})),
    "unnamed": (Schema([ColSpec("double")]), pd.DataFrame([[1.5]])),
    "positional": (Schema([ColSpec("string"), ColSpec("double")]), pd.DataFrame([["x", 1.5]])),
    "nested": (Schema([ColSpec(Array("long"), "ids"), ColSpec(AnyType(), "any")]), None),
    "tensor": (Schema([TensorSpec(np.dtype("float32"), (-1, 2))]), np.ones((2, 2), "float32")),
    "named tensors": (
        Schema([TensorSpec(np.dtype("int64"), (-1,), "a"), TensorSpec(np.dtype("float64"), (-1, 2), "b")]),
        {"a": np.array([1]), "b": np.ones((1, 2))},
    ),
}


@pytest.mark.parametrize("kind", SIGNATURES)
async def test_the_documented_schema_accepts_the_documented_example(client, shelf, kind):
    inputs, example = SIGNATURES[kind]
    options = {} if example is None else {"input_example": example}
    name = f"documented {kind}"
    version = shelf.log(name, Constant([]), signature=ModelSignature(inputs=inputs), **options)
    async with client(name, version) as http:
        document = (await http.get("/openapi.json")).json()
        content = document["paths"]["/serve"]["post"]["requestBody"]["content"]["application/json"]
        check = jsonschema.Draft202012Validator({**content["schema"], "components": document["components"]})
        examples = [each["value"] for each in content.get("examples", {}).values()]
        assert bool(examples) is (example is not None)
        for body in examples:
            check.validate(body)
            assert (await http.post("/serve", json=body)).status_code == 200
        for wrong in ([[["?"]]], {"nothing": 1}, {"inputs": {"nothing": 1}}):
            assert not check.is_valid(wrong)
            assert (await http.post("/serve", json=wrong)).status_code == 422


async def test_documentation_needs_nothing_from_elsewhere(client):
    async with client() as http:
        page = await http.get("/docs")
        assert page.status_code == 200
        assert "//" not in page.text.replace("<!--", "").split("SwaggerUIBundle")[0].replace("http://serve.test", "")
        script = await http.get("/static-offline-docs/swagger-ui-bundle.js")
        assert script.status_code == 200
        assert len(script.content) > 100_000


async def test_what_goes_wrong_on_other_pages_is_a_problem_too(client, monkeypatch):
    async with client() as http:
        wrongs = ((ModelNotFound("toy"), 404, "model_not_found"), (RuntimeError("secret"), 500, "internal_error"))
        for error, status, code in wrongs:

            async def fails(error=error):
                raise error

            monkeypatch.setattr(http.plane, "describe", fails)
            told = await http.get("/model")
            assert_problem(told, status, code)
            assert "secret" not in told.text


# --- MosaicML's clients ----------------------------------------------------------------------------------------------


async def test_a_client_of_mosaicml_can_ask_a_registered_model(client):
    async with client() as http:
        form = {"content-type": "application/x-www-form-urlencoded"}
        answer = await http.post("/predict", content='{"inputs": ["a", {"prompt": "b"}]}', headers=form)
        assert answer.json() == {"outputs": (await http.post("/serve", json=[{"prompt": "a"}, {"prompt": "b"}])).json()}
        assert answer.headers["serve-model-version"] == "1"
        wrong = await http.post("/predict", json={"inputs": [5]})
        assert (wrong.status_code, wrong.json()["detail"]) == (422, "inputs[0].prompt must be a string.")
        assert (await http.post("/predict_stream", json={"inputs": "a"})).status_code == 501
        assert (await http.get("/ping")).json() == {"status": "ready"}


async def test_its_parameters_are_the_models_params(client, shelf):
    params = ParamSchema([ParamSpec("t", "double", 0.5)])
    signature = ModelSignature(inputs=Schema([ColSpec("string", "prompt")]), params=params)
    version = shelf.log("asked with params", WithParams(), signature=signature)
    async with client("asked with params", version) as http:
        answer = await http.post("/predict", json={"inputs": ["a"], "parameters": {"t": 0.25}})
        rows = {"inputs": [{"prompt": "a"}], "params": {"t": 0.25}}
        assert answer.json() == {"outputs": (await http.post("/serve", json=rows)).json()}
        assert (await http.post("/predict", json={"inputs": ["a"], "nothing": 1})).status_code == 422
