"""What binds several fields; looked at whatever the types are, so that the first mistake of a file is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from math import inf
from typing import Any

from registry_serve.deployment_file.faults import Fault, at, found, nearest
from registry_serve.deployment_file.fields import TASKS, CheckpointPath, DeploymentFile
from registry_serve.deployment_file.gpu_types import accelerator_type
from registry_serve.errors import ConfigurationError

_CHECKPOINTS = tuple(CheckpointPath.model_fields)
_OF_A_HANDLER = ("model_handler", "model_parameters", "downloader", "download_parameters")


def broken_rules(document: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong between fields; the document's values may be of any type."""
    yield from _what_is_served(document)
    yield from _registry_or_handler(document)
    yield from _default_model(document)
    yield from _gpus(document)
    yield from _variables(document)


def missing(key: str, document: Mapping[str, Any], besides: str = "") -> Fault:
    """Say that a top-level key is missing, or that an unknown one is probably meant to be it."""
    unknown = [each for each in document if isinstance(each, str) and each not in DeploymentFile.model_fields]
    for misspelt in get_close_matches(key, unknown, n=1):
        return Fault((misspelt,), f"is unknown, and {key} is missing; did you mean {key}")
    return Fault((key,), f"is missing{besides}")


def _what_is_served(document: Mapping[str, Any]) -> Iterator[Fault]:
    both = [key for key in document if key in ("model", "default_model") and document[key] is not None]
    if len(both) == 2:
        yield Fault((both[1],), f"does not go with {both[0]}; keep one of them")
    if not both:
        yield missing("model", document, ", and default_model too; one of them says what is served")


def _registry_or_handler(document: Mapping[str, Any]) -> Iterator[Fault]:
    model = document.get("model")
    if not isinstance(model, Mapping):
        return
    given = {key for key, value in model.items() if value is not None and value != {}}
    if "registered_model" in given:
        for key in _OF_A_HANDLER:
            if key in given:
                yield Fault(("model", key), "does not go with registered_model, whose versions bring their own")
        return
    if "version" in given:
        yield Fault(("model", "version"), "needs model.registered_model; handlers without a registry have no versions")
    if "downloader" not in given:
        yield from _built_in_download(model.get("download_parameters"))
    if "model_handler" not in given:
        yield from _task(model)
    for key in ("model_handler", "downloader"):
        if isinstance(model.get(key), str) and model[key].endswith(".py"):
            yield Fault(("model", key), "must be a dotted path and no file: folder/file.py is folder.file.NAME")


def _built_in_download(parameters: Any) -> Iterator[Fault]:
    if not isinstance(parameters, Mapping):
        return
    section = ("model", "download_parameters")
    for key, value in parameters.items():
        if key not in _CHECKPOINTS:
            known = ", ".join(_CHECKPOINTS)
            yield Fault(
                (*section, key),
                f"is unknown{nearest(str(key), _CHECKPOINTS)} Without model.downloader the keys are {known}",
            )
        elif value is not None and not isinstance(value, str):
            yield Fault((*section, key), f"must be text{found((key,), value)}")
    given = [key for key in parameters if key in _CHECKPOINTS and parameters[key] is not None]
    for key in given[1:]:
        yield Fault((*section, key), f"does not go with {given[0]}; keep one of them")


def _task(model: Mapping[str, Any]) -> Iterator[Fault]:
    task = at(model, ("model_parameters", "task"))
    path, named = ("model", "model_parameters", "task"), " or ".join(TASKS)
    if task is None:
        yield Fault(path, f"is missing: without model_handler the default handler serves, and needs {named}")
    elif task not in TASKS:
        yield Fault(path, f"must be {named}{found(path, task)}")


def _default_model(document: Mapping[str, Any]) -> Iterator[Fault]:
    path = ("default_model", "checkpoint_path")
    checkpoint = at(document, path)
    if not isinstance(checkpoint, Mapping):
        return
    given = [key for key in checkpoint if key in _CHECKPOINTS and checkpoint[key] is not None]
    if not given and all(key in _CHECKPOINTS for key in checkpoint):
        yield Fault(path, f"must hold one of {', '.join(_CHECKPOINTS)}")
    for key in given[1:]:
        yield Fault((*path, key), f"does not go with {given[0]}; keep one of them")


def _gpus(document: Mapping[str, Any]) -> Iterator[Fault]:
    gpus, kind = at(document, ("compute", "gpus")), at(document, ("compute", "gpu_type"))
    if not isinstance(gpus, (int, float)) or isinstance(gpus, bool) or not 0 < gpus < inf:
        return
    if gpus > 1 and gpus % 1:
        yield Fault(("compute", "gpus"), f"must be a whole number above 1, not {gpus:g}; only one GPU can be shared")
    if isinstance(kind, str) and kind:
        try:
            accelerator_type(kind)
        except ConfigurationError as error:
            yield Fault(("compute", "gpu_type"), f"cannot be used: {str(error).rstrip('.')}")


def _variables(document: Mapping[str, Any]) -> Iterator[Fault]:
    variables = document.get("env_variables")
    seen: list[Any] = []
    for index, variable in enumerate(variables if isinstance(variables, list) else []):
        key = at(variable, ("key",))
        if isinstance(key, str) and key in seen:
            yield Fault(("env_variables", index, "key"), f"is {key} for the second time; keep one")
        seen.append(key)
