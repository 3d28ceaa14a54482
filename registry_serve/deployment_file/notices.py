"""What a deployment file asks for and does not get here, each in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from registry_serve.deployment_file.faults import at, dotted, shown_key
from registry_serve.deployment_file.fields import TASKS, DeploymentFile, OtherIntegration
from registry_serve.deployment_file.legacy import MOVED

_INSTEAD = {
    "apt_packages": "install them on the nodes",
    "wandb": "log from the handler, with its keys in env_variables",
    "comet_ml": "log from the handler, with its keys in env_variables",
}


def notices(file: DeploymentFile, *, use_image: bool = False, allow_command: bool = False) -> list[str]:
    """Return the sentences, none twice; the options say what the command line allows."""
    said = [*_names(file), *_older_keys(file), *_not_here(file)]
    if file.image and not use_image:
        said.append("image is not used: replicas run in this machine's Python; --use-image runs them in it.")
    if file.command and not allow_command:
        said.append("command is not run, but for its `export NAME=VALUE` lines; --allow-command runs it.")
    return list(dict.fromkeys(said))


def _names(file: DeploymentFile) -> Iterator[str]:
    if file.name != file.name_as_written:
        yield f"The deployment is named {file.name}: names hold lower-case letters, digits and dashes, at most 63."
    unknown = sorted(map(shown_key, file.model_extra or {}))
    if unknown:
        yield f"unknown fields {', '.join(unknown)} are not used."
    for key in unknown:
        for known in get_close_matches(key, DeploymentFile.model_fields, n=1):
            yield f"{key} is not used; did you mean {known}?"


def _older_keys(file: DeploymentFile) -> Iterator[str]:
    document = file.model_dump()
    for old, new in MOVED.items():
        if at(document, old) is not None:
            yield f"{dotted(old)} is an older key; write {dotted(new)}."


def _not_here(file: DeploymentFile) -> Iterator[str]:
    compute = file.compute
    asked = {"cluster": compute.cluster, "instance": compute.instance, "nodes": (compute.nodes or 1) > 1}
    for key in (key for key, value in asked.items() if value):
        yield f"compute.{key} is not used: replicas go where Ray finds room for them."
    if file.model is not None and file.model.backend:
        yield "model.backend is not used; the handler decides how the model runs."
    if file.default_model is not None and file.default_model.model_type not in TASKS:
        yield f"default_model.model_type is no task; {file.default_model.task} is taken."
    for integration in file.integrations:
        if isinstance(integration, OtherIntegration):
            kind = integration.integration_type
            yield f"The integration {kind} is not used; {_INSTEAD[kind]}."
