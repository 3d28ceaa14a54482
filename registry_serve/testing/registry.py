"""A registry in memory, for tests: versions of any Python object or function, with real signatures and aliases."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import mlflow.pyfunc
import pandas as pd
from mlflow.models import Model, ModelSignature, convert_input_example_to_serving_input, infer_signature
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from registry_serve.contract import Contract
from registry_serve.dataplane import DataPlane
from registry_serve.errors import ConfigurationError, ModelNotFound, VersionForbidden, VersionNotFound
from registry_serve.models.pyfunc import PyfuncModel
from registry_serve.policies import BatchPolicy, CachePolicy, Limits, RegistryAddress, VersionPolicy
from registry_serve.registry import ModelCard, ModelVersion, Reference, Resolver, VersionSummary, parse_reference
from registry_serve.registry.records import available_references
from registry_serve.signature import Compatibility
from registry_serve.testing.clients import ModelClient

if TYPE_CHECKING:
    from typing_extensions import Self

_ALL = VersionPolicy()
#: Nothing is believed for any time: a version or an alias that a test adds is there at once.
_ADDRESS = RegistryAddress("memory:", fresh_for_s=0.0)


@dataclass
class _Registered:
    """One registered model.

    Attributes:
        versions: by number, with the models that they stand for.
        aliases: alias to number.
    """

    versions: dict[str, tuple[ModelVersion, Any]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


class MemoryRegistry:
    """Registered models whose versions are any Python objects. Clients of it are closed with it.

    registry.add("prices", lambda frame: frame["area"] * 1000, input_example=[{"area": 1.5}])
    client = registry.client("prices")
    """

    def __init__(self) -> None:
        self._models: dict[str, _Registered] = {}
        self._clients = ExitStack()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close all clients."""
        self._clients.close()

    def add(
        self,
        name: str,
        model: Any,
        *,
        signature: ModelSignature | None = None,
        input_example: Any = None,
        params: Mapping[str, Any] | None = None,
        aliases: Collection[str] = (),
    ) -> str:
        """Register a version, the next one of its model.

        Args:
            name: of the registered model.
            model: an MLflow ``PythonModel``, an object with ``predict(data)`` or ``predict(data, params)``, or a
                function that takes the same. It gets what MLflow would give it, a DataFrame for columns.
            signature: the version's signature; inferred from ``input_example`` if not given.
            input_example: what MLflow's ``log_model`` takes; the version answers it when it is loaded.
            params: the params of an inferred signature, with their defaults.
            aliases: they then point to this version.

        Returns:
            Its number.

        Raises:
            ConfigurationError: the model cannot be called, or its signature is not known.
        """
        call = _callable(model)
        if signature is None:
            if input_example is None:
                raise ConfigurationError(f"A version of {name!r} needs a signature=... or an input_example=...")
            answered = call(_as_given(input_example), dict(params or {}))
            signature = infer_signature(input_example, answered, dict(params) if params else None)
        registered = self._models.setdefault(name, _Registered())
        number = str(len(registered.versions) + 1)
        uuid, created = uuid4().hex, datetime.now(timezone.utc)
        card = _card(signature, input_example, params)
        version = ModelVersion(name, number, uuid, uuid[:12], f"memory:{name}/{number}", (), created, card)
        registered.versions[number] = version, model
        for alias in aliases:
            self.alias(name, alias, number)
        return number

    def alias(self, name: str, alias: str, number: str | int) -> None:
        """Let an alias point to a version.

        Raises:
            VersionNotFound: there is no such version.
        """
        self.version(name, str(number))
        self._models[name].aliases[alias] = str(number)

    def client(
        self,
        name: str,
        default: str | int = "1",
        *,
        versions: str | int | Collection[str | int] = "all",
        compatibility: str | Compatibility = Compatibility.EXACT,
        max_models: int = 2,
        batching: str | BatchPolicy = "auto",
        limits: Limits | None = None,
    ) -> ModelClient:
        """Serve a model in this process, as ``deployment_from_model_name`` does on a cluster.

        Args:
            name: of the registered model.
            default: what answers when a request names no version: a number, ``latest`` or an alias.
            versions: which versions a request may name: ``"all"``, ``"aliased"`` or version numbers.
            compatibility: ``"exact"`` or ``"backward"``.
            max_models: versions that stay loaded.
            batching: ``"auto"``, ``"on"`` or ``"off"``, or a policy.
            limits: what one request may cost.

        Raises:
            ModelNotFound: there is no such model.
            VersionNotFound: it has no such version.
            SignatureUnsupported: a type of the signature has no JSON form.
            LoadFailed, WarmUpFailed: the default version cannot be loaded, or cannot answer its own example.
        """
        reference = parse_reference(str(default))
        if reference is None:
            raise ConfigurationError(f"{default!r} is no version: give a number, 'latest' or an alias.")
        version = self.version(name, self.number_of(name, reference))
        contract = Contract(version, Compatibility(compatibility))
        policy = VersionPolicy.of(versions)
        merging = batching if isinstance(batching, BatchPolicy) else BatchPolicy(batching)  # type: ignore[arg-type]

        def plane() -> DataPlane:
            return DataPlane(
                contract,
                Resolver(self, name, version, policy, _ADDRESS),
                self._load,
                cache=CachePolicy(max_models=max_models),
                batching=merging,
                limits=limits or Limits(),
            )

        return self._clients.enter_context(ModelClient(plane, name))

    # --- what a resolver asks ----------------------------------------------------------------------------------------

    def version(
        self,
        model: str,
        number: str,
        *,
        known: ModelVersion | None = None,
        policy: VersionPolicy = _ALL,
        default: ModelVersion | None = None,
    ) -> ModelVersion:
        """Return one version, as :meth:`registry_serve.registry.Registry.version` does."""
        found, _ = self._registered(model).versions.get(number, (None, None))
        if found is None:
            raise VersionNotFound(model, number, available_references(self.summaries(model), policy))
        aliases = self._aliases(model, number)
        is_default = default is not None and default.is_registration(model, number, found.created)
        if not is_default and not policy.allows(number, aliases):
            raise VersionForbidden(model, number, str(policy))
        return replace(found, aliases=aliases)

    def number_of(self, model: str, reference: Reference, *, policy: VersionPolicy = _ALL) -> str:
        """Return the number that a reference means, as :meth:`registry_serve.registry.Registry.number_of` does."""
        if reference.kind == "number":
            return reference.name
        summaries = self.summaries(model)
        if reference.kind == "latest":
            allowed = (each.number for each in summaries if policy.allows(each.number, each.aliases))
            number = next(allowed, None)
        else:
            number = self._registered(model).aliases.get(reference.name)
        if number is None:
            raise VersionNotFound(model, str(reference), available_references(summaries, policy))
        return number

    def summaries(self, model: str) -> list[VersionSummary]:
        """List all versions of a model, newest first."""
        versions = [version for version, _ in self._registered(model).versions.values()]
        return [
            VersionSummary(each.number, self._aliases(model, each.number), each.created, True)
            for each in reversed(versions)
        ]

    def _registered(self, model: str) -> _Registered:
        if model not in self._models:
            raise ModelNotFound(model)
        return self._models[model]

    def _aliases(self, model: str, number: str) -> tuple[str, ...]:
        pointing = self._registered(model).aliases.items()
        return tuple(sorted(alias for alias, target in pointing if target == number))

    def _load(self, version: ModelVersion) -> PyfuncModel:
        _, model = self._models[version.model].versions[version.number]
        meta = Model(signature=version.card.signature)
        mlflow.pyfunc.add_to_model(meta, loader_module=__name__)
        return PyfuncModel(PyFuncModel(meta, _Implementation(_callable(model))))


class _Implementation:
    """What MLflow calls."""

    def __init__(self, call: Callable[[Any, dict[str, Any]], Any]) -> None:
        self._call = call

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        return self._call(model_input, params or {})


def _callable(model: Any) -> Callable[[Any, dict[str, Any]], Any]:
    """Return a function of data and params that calls the model with as much as it takes.

    Raises:
        ConfigurationError: it is neither a function nor has it a ``predict``.
    """
    predict = getattr(model, "predict", model)
    if isinstance(model, type) or not callable(predict):
        raise ConfigurationError(
            f"{getattr(model, '__name__', type(model).__name__)!r} is no model: give a function of a frame, or an "
            f"object (no class) with a method predict."
        )
    context: list[Any] = []
    taken = list(inspect.signature(predict).parameters)
    if isinstance(model, PythonModel):
        given = PythonModelContext({}, {})  # type: ignore[no-untyped-call]
        model.load_context(given)  # type: ignore[no-untyped-call]
        if taken[:1] == ["context"]:
            context, taken = [given], taken[1:]
    if len(taken) < 2:
        return lambda data, params: predict(*context, data)
    return lambda data, params: predict(*context, data, params)


def _card(signature: ModelSignature, example: Any, params: Mapping[str, Any] | None) -> ModelCard:
    written = None
    if example is not None:
        given = (example, dict(params)) if params else example
        written = json.loads(convert_input_example_to_serving_input(given) or "null")
    return ModelCard(
        signature=signature,
        from_type_hint=False,
        flavor=__name__,
        input_example=written,
        code_paths=False,
        from_code=False,
        streamable=False,
        size_bytes=None,
        mlflow_version=mlflow.__version__,
    )


def _as_given(example: Any) -> Any:
    """Return an example as the model gets it: MLflow makes a frame of a list of records."""
    records = isinstance(example, list) and example and all(isinstance(each, dict) for each in example)
    return pd.DataFrame(example) if records else example
