"""The deployment file's JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

from registry_serve.deployment_file.fields import CheckpointPath, DeploymentFile

#: The draft that editors' YAML extensions know best.
_DRAFT = "http://json-schema.org/draft-07/schema#"
_CHECKPOINTS = list(CheckpointPath.model_fields)


def json_schema() -> dict[str, Any]:
    """Return the schema: types, ranges, known keys, and which keys exclude each other.

    What it cannot say, such as which kinds of GPU are known, ``read`` checks.
    """
    schema = DeploymentFile.model_json_schema()
    schema.update({"$schema": _DRAFT, "title": "Deployment file of registry-serve"})
    schema["oneOf"] = [{"required": ["model"]}, {"required": ["default_model"]}]
    definitions = schema["$defs"]
    definitions["CheckpointPath"].update(minProperties=1, maxProperties=1)
    definitions["Model"].update(_of_the_model())
    return schema


def _of_the_model() -> dict[str, Any]:
    at_most_one = {"maxProperties": 1, "propertyNames": {"enum": _CHECKPOINTS}}
    handlers = ("model_handler", "model_parameters", "downloader", "download_parameters")
    return {
        "dependencies": {
            "version": ["registered_model"],
            "registered_model": {"not": {"anyOf": [{"required": [key]} for key in handlers]}},
        },
        "if": {"not": {"required": ["downloader"]}},
        "then": {"properties": {"download_parameters": at_most_one}},
        "anyOf": [
            {"required": ["registered_model"]},
            {"required": ["model_handler"]},
            {"required": ["custom_model"]},
            {"required": ["model_parameters"], "properties": {"model_parameters": _with_a_task()}},
        ],
    }


def _with_a_task() -> dict[str, Any]:
    return {"required": ["task"], "properties": {"task": {"enum": ["text-generation", "feature-extraction"]}}}
