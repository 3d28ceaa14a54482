"""The data plane of a model handler, put together in the process that will answer."""

from __future__ import annotations

from collections.abc import Callable

from registry_serve.dataplane import DataPlane
from registry_serve.handlers import (
    HandlerContract,
    HandlerSchema,
    HandlerSpec,
    OnlyVersion,
    handler_class,
    only_version,
)
from registry_serve.leases import VersionState
from registry_serve.models import LoadedModel
from registry_serve.models.handler import load_handler
from registry_serve.policies import BatchPolicy, CachePolicy, Limits
from registry_serve.registry import ModelVersion, VersionKey


def handler_plane(
    spec: HandlerSpec,
    name: str,
    *,
    batching: BatchPolicy,
    limits: Limits,
    rate_limit: float | None = None,
    on_change: Callable[[VersionKey, VersionState], None] = lambda key, state: None,
) -> DataPlane:
    """Import a handler's class, and return what will serve it; nothing is downloaded or built before it starts.

    Args:
        spec: which handler.
        name: of its deployment.
        batching: ``"on"`` or ``"off"``, and how much goes together.
        limits: what one request may cost.
        rate_limit: requests that are let in per second; None for any number.
        on_change: called each time the handler has come into another state.

    Raises:
        HandlerInvalid: there is no such class, or it is no handler.
    """
    schema = HandlerSchema(handler_class(spec), spec.name)
    default = only_version(name, spec.name)

    def load(version: ModelVersion) -> LoadedModel:
        return load_handler(spec, takes_body=schema.takes_body)

    return DataPlane(
        HandlerContract(default, schema),
        OnlyVersion(default),
        load,
        cache=CachePolicy(max_models=1),
        batching=batching,
        limits=limits,
        rate_limit=rate_limit,
        on_change=on_change,
    )
