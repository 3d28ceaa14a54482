"""A model handler -> a deployment."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.serve import Deployment
from starlette.types import ASGIApp

from registry_serve.dataplane import DataPlane
from registry_serve.deployment.replica import OnChange, Replica, deployment_of
from registry_serve.downloaders import Download
from registry_serve.errors import ConfigurationError
from registry_serve.handlers import HandlerSchema, HandlerSpec, handler_class
from registry_serve.handlers.spec import DEFAULT_HANDLER
from registry_serve.planes import handler_plane
from registry_serve.policies import BatchPolicy, CachePolicy, Limits
from registry_serve.protocols.mosaicml import handler_app
from registry_serve.resources import Resources

#: A handler has one version.
_ONE = CachePolicy(max_models=1)
_TENSOR_PARALLEL = "tensor_parallel"


def deployment_from_handler(
    handler: str | type | None = None,
    *,
    name: str | None = None,
    model_parameters: Mapping[str, Any] | None = None,
    downloader: str | Callable[..., Any] | None = None,
    download_parameters: Mapping[str, Any] | None = None,
    code_paths: Sequence[str | Path] = (),
    batching: str | BatchPolicy = "on",
    limits: Limits | None = None,
    rate_limit: float | None = None,
    gpus: float = 0.0,
    gpu_type: str | None = None,
    tensor_parallel: int = 1,
    title: str | None = None,
    api_key_file: str | Path | None = None,
) -> Deployment:
    """Make a deployment that serves a model handler.

        serve.run(deployment_from_handler("hello_world.handler.HelloWorld").bind())

    It answers ``POST /predict`` and ``/predict_stream`` as MosaicML's custom deployments do. Each replica downloads
    what the handler needs (once per node), builds the handler, and only then is ready. The result is an ordinary
    deployment: ``.options(num_replicas=2, ...)`` works on it.

    Args:
        handler: a class with ``predict(self, model_requests)``, its dotted path, or the name of an entry point in the
            group ``registry_serve.handlers``; the built-in Hugging Face handler if not given.
        name: of the deployment; the handler's own if not given.
        model_parameters: keywords that the handler is built with.
        downloader: a function that fetches the model, defined at the top of its module; its dotted path; or the name of
            an entry point in the group ``registry_serve.downloaders``. If not given, ``hf_path``, ``s3_path`` or
            ``gcp_path`` chooses one.
        download_parameters: keywords that the downloader is called with.
        code_paths: folders to import the handler from, absolute or below the replica's working directory.
        batching: ``"on"`` or ``"off"``, or a policy: whether inputs of several requests with equal parameters go to
            the handler together.
        limits: what one request may cost.
        rate_limit: requests per second that each replica lets in; any number if not given.
        gpus: GPUs of each replica; a fraction shares one.
        gpu_type: which, such as ``"a100_40gb"`` or ``"A100"``; any if not given.
        tensor_parallel: processes that each replica divides the layers of its model over, on one node; with GPUs,
            ``gpus`` is the same number. The handler is built with it as a keyword, if it is above 1.
        title: of the API's documentation; the name if not given.
        api_key_file: file with one API key per line, on every node; requests then need one of them.

    Raises:
        ConfigurationError: an argument makes no sense.
        HandlerInvalid: the class given is no handler. A dotted path is looked up by the replicas: the code may be only
            there.
        ResourcesMissing: Ray runs, and has no such GPUs.
    """
    spec = HandlerSpec(
        DEFAULT_HANDLER if handler is None else handler,
        _parameters(handler, model_parameters or {}, tensor_parallel),
        Download(downloader, dict(download_parameters or {})),
        tuple(str(path) for path in code_paths),
    )
    if not isinstance(spec.handler, str):
        HandlerSchema(handler_class(spec), spec.name)
    named = name or spec.name.rpartition(".")[2]
    policy = batching if isinstance(batching, BatchPolicy) else BatchPolicy(mode=batching)  # type: ignore[arg-type]
    if policy.mode == "auto":
        raise ConfigurationError("batching must be 'on' or 'off' for a handler: it is made to take several requests.")
    replica = Replica(
        named,
        title or named,
        cache=_ONE,
        batching=policy,
        limits=limits or Limits(),
        rate_limit=rate_limit,
        resources=Resources(gpus=gpus, gpu_type=gpu_type, processes=tensor_parallel),
        api_key_file=None if api_key_file is None else str(api_key_file),
    )
    return deployment_of(ServedHandler(spec, replica))


def _parameters(handler: str | type | None, given: Mapping[str, Any], tensor_parallel: int) -> dict[str, Any]:
    """Return the keywords of a handler; one of them decides what its replicas take as well."""
    if handler in (None, DEFAULT_HANDLER) and given.get(_TENSOR_PARALLEL, tensor_parallel) != tensor_parallel:
        raise ConfigurationError(
            "Give tensor_parallel to deployment_from_handler itself, not in model_parameters: the replicas' resources "
            "depend on it."
        )
    return dict(given) if tensor_parallel == 1 else {**given, _TENSOR_PARALLEL: tensor_parallel}


@dataclass(frozen=True)
class ServedHandler:
    """A handler as a deployment serves it."""

    spec: HandlerSpec
    replica: Replica

    def plane(self, on_change: OnChange) -> DataPlane:
        """Import the handler's class, and put the data plane together."""
        replica = self.replica
        return handler_plane(
            self.spec,
            replica.name,
            batching=replica.batching,
            limits=replica.limits,
            rate_limit=replica.rate_limit,
            on_change=on_change,
        )

    def web(self, plane: DataPlane) -> ASGIApp:
        """Return the front of MosaicML's clients."""
        replica = self.replica
        return handler_app(plane, replica.title, replica.keys(), behind_serve=True)
