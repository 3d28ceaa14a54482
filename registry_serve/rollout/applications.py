"""The record of a deployment -> a deployment of Ray Serve, with its replicas' options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ray import serve

from registry_serve.deployment import deployment_from_handler, deployment_from_model_name
from registry_serve.deployment_file import DeploymentFile, accelerator_type
from registry_serve.errors import ConfigurationError
from registry_serve.handlers.spec import DEFAULT_HANDLER
from registry_serve.policies import BatchPolicy, Limits
from registry_serve.resources import Resources
from registry_serve.rollout.records import Record
from registry_serve.rollout.variables import code_paths, executable, variables

_DEFAULT_HANDLER = "the default handler"
_POLL_S = 0.1
_TENSOR_PARALLEL = "tensor_parallel"
#: What handlers print is logged as information.
_LOGGING = {"log_level": "INFO", "enable_access_log": False}


@dataclass(frozen=True)
class Built:
    """What Serve is given.

    Attributes:
        deployment: of Serve.
        resources: what each replica takes.
        serves: a handler's path, or ``models:/NAME/VERSION``.
    """

    deployment: serve.Deployment
    resources: Resources
    serves: str


def build(record: Record, working_dir: str | None) -> Built:
    """Make what a record describes.

    Args:
        record: of the deployment.
        working_dir: where Ray finds the replicas' code; None where they need none, or the connection says it.

    Raises:
        RegistryServeError: it cannot be served.
    """
    file = record.parsed
    deployment, serves = _deployment(record, file)
    resources = _resources(record, file)
    options = {**resources.actor_options(), "runtime_env": _runtime_env(record, file, working_dir)}
    made = deployment.options(
        **resources.placement(),
        num_replicas=record.replicas,
        ray_actor_options=options,
        graceful_shutdown_timeout_s=Limits().request_timeout_s,
        graceful_shutdown_wait_loop_s=_POLL_S,
        logging_config=_LOGGING,
    )
    return Built(made, resources, serves)


def _deployment(record: Record, file: DeploymentFile) -> tuple[serve.Deployment, str]:
    shared: dict[str, Any] = {
        "rate_limit": None if file.rate_limit is None else file.rate_limit / record.replicas,
        "title": file.name,
        "api_key_file": record.order.api_key_file,
    }
    model, default = file.model, file.default_model
    if model is not None and model.registered_model is not None:
        assert record.source is not None
        made = deployment_from_model_name(
            model.registered_model,
            record.source.version,
            tracking_uri=record.source.tracking_uri,
            registry_uri=record.source.registry_uri,
            batching=_batching(file, "auto"),
            **shared,
        )
        return made, f"models:/{model.registered_model}/{record.source.version}"
    shared["batching"] = _batching(file, "on")
    if default is not None:
        downloaded = default.checkpoint_path.model_dump(exclude_none=True)
        made = deployment_from_handler(
            name=file.name, model_parameters={"task": default.task}, download_parameters=downloaded, **shared
        )
        return made, _DEFAULT_HANDLER
    assert model is not None
    made = deployment_from_handler(
        model.model_handler,
        name=file.name,
        model_parameters=model.model_parameters,
        downloader=model.downloader,
        download_parameters=model.download_parameters,
        code_paths=(*record.code.paths, *code_paths(file)),
        tensor_parallel=_processes(file),
        **shared,
    )
    return made, model.model_handler or _DEFAULT_HANDLER


def _batching(file: DeploymentFile, mode: Literal["auto", "on"]) -> BatchPolicy:
    asked = file.batching
    return BatchPolicy(
        mode=mode,
        max_batch_size=asked.max_batch_size,
        max_wait_ms=asked.max_timeout_ms,
        max_batch_bytes=asked.max_batch_size_in_bytes,
        max_waiting=asked.max_queue_size,
    )


def _resources(record: Record, file: DeploymentFile) -> Resources:
    order, compute = record.order, file.compute
    gpus = compute.gpus if order.gpus is None else order.gpus
    kind = order.gpu_type or compute.gpu_type
    return Resources(
        cpus=compute.cpus,
        gpus=gpus,
        gpu_type=accelerator_type(kind) if kind is not None and gpus else None,
        processes=_processes(file),
    )


def _processes(file: DeploymentFile) -> int:
    """Return how many processes the built-in handler divides its model over."""
    model = file.model
    if model is None or model.registered_model is not None or model.model_handler not in (None, DEFAULT_HANDLER):
        return 1
    asked = model.model_parameters.get(_TENSOR_PARALLEL, 1)
    if not isinstance(asked, int) or asked < 1:
        raise ConfigurationError(f"model_parameters.tensor_parallel must be a whole number above 0, not {asked!r}.")
    return asked


def _runtime_env(record: Record, file: DeploymentFile, working_dir: str | None) -> dict[str, Any]:
    order, code = record.order, record.code
    made: dict[str, Any] = {"env_vars": variables(file)}
    if order.use_image and (image := order.image or file.image):
        if code.archive or code.packages:
            raise ConfigurationError(
                "Ray adds neither code nor packages to a container image. Put them into the image."
            )
        return {**made, "image_uri": image}
    if working_dir is not None:
        made["working_dir"] = working_dir
    if code.packages:
        made["pip"] = {"packages": list(code.packages), "pip_install_options": list(code.options)}
    if file.command and order.allow_command:
        made["py_executable"] = executable(file.command)
    return made
