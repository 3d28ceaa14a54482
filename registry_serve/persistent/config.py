"""How a deployment is configured: every field of DeepSpeed-MII's ModelConfig and MIIConfig.

Fields that have no meaning on Ray are accepted, and a warning says so; ``docs/persistent.md`` has all of them.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from registry_serve.errors import ConfigurationError, UnknownArgument

TASK = "text-generation"
_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LONGEST_NAME = 120
#: What a file's name has room for beside the end of a record's; letters other than Latin take six or nine of these.
_LONGEST_QUOTED = 250
_UNUSED = {
    "quantization_mode": "weights are loaded as the model has them",
    "inference_engine_config": "the engine sizes itself",
    "torch_dist_port": "free ports are taken",
    "zmq_port_number": "Ray carries the messages",
    "replica_configs": "Ray places the replicas",
    "device_map": "Ray gives each replica its GPUs",
    "sync_debug": "there is no such mode",
    "profile_model_time": "Ray's metrics tell the times",
    "restful_processes": "one event loop answers all",
    "hostfile": "the cluster's nodes are those of Ray",
    "version": "it is no part of the deployment",
    "instance_type": "it is for another cloud",
}
_said: set[str] = set()

Config = TypeVar("Config", bound=BaseModel)


class ReplicaConfig(BaseModel):
    """Where a replica was to be; Ray places the replicas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hostname: str = ""
    tensor_parallel_ports: list[int] = []
    torch_dist_port: int | None = None
    gpu_indices: list[int] = []
    zmq_port: int | None = None


class ModelConfig(BaseModel):
    """What is served.

    Attributes:
        model_name_or_path: its name on the hub, or a folder.
        tokenizer: the same of its tokenizer; the model's if not given.
        task: only text generation.
        tensor_parallel: processes, each with a GPU, that one replica is divided over.
        replica_num: replicas, which take requests in turn.
        max_length: tokens of prompt and answer together for calls that say none; the model's context if not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_name_or_path: str
    tokenizer: str | None = None
    task: str = TASK
    tensor_parallel: int = Field(1, ge=1)
    quantization_mode: str | None = None
    inference_engine_config: dict[str, Any] = {}
    torch_dist_port: int = 29500
    zmq_port_number: int = 25555
    replica_num: int = Field(1, ge=1)
    replica_configs: list[ReplicaConfig] = []
    device_map: Any = "auto"
    max_length: int | None = Field(None, ge=1)
    sync_debug: bool = False
    profile_model_time: bool = False

    @field_validator("task")
    @classmethod
    def _generates(cls, given: str) -> str:
        task = str(getattr(given, "value", given)).replace("_", "-")
        if task != TASK:
            raise ValueError(f"must be {TASK!r}: other models are served by registry_serve.deployment_from_handler")
        return task


class MIIConfig(BaseModel):
    """How it is served.

    Attributes:
        deployment_name: of the deployment; the model's with ``-mii-deployment`` behind it if not given.
        model_conf: what is served; also by its alias ``model_config``.
        port_number: that gRPC clients connect to, on this machine.
        enable_restful_api: whether there is an HTTP server as well.
        restful_api_host: that it listens on.
        restful_api_port: that it listens on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True)

    deployment_name: str = ""
    deployment_type: Literal["local", "LOCAL"] = "local"
    model_conf: ModelConfig = Field(alias="model_config")
    port_number: int = Field(50050, ge=1, le=65535)
    enable_restful_api: bool = False
    restful_api_host: str = "localhost"
    restful_api_port: int = Field(51080, ge=1, le=65535)
    restful_processes: int = 32
    hostfile: str = "/job/hostfile"
    version: int = 1
    instance_type: str = ""

    @field_validator("deployment_name")
    @classmethod
    def _short(cls, given: str) -> str:
        if len(given) > _LONGEST_NAME or not given.isprintable():
            raise ValueError(f"must be printable, and at most {_LONGEST_NAME} characters")
        return given

    @property
    def name(self) -> str:
        """The name of the deployment."""
        return self.deployment_name or default_name(self.model_conf.model_name_or_path)


def default_name(model: str) -> str:
    """Return the name of a deployment that was given none."""
    folder = Path(model).expanduser()
    return f"{folder.name if folder.is_absolute() or is_folder(folder) else model}-mii-deployment"


def quoted(name: str) -> str:
    """Return the name of a deployment as it can be a file's."""
    return quote(name, safe="")


def is_folder(path: Path) -> bool:
    """Say whether something is a folder; a name that none can have is not."""
    return os.path.isdir(path)  # Path.is_dir raises an error for names that are too long


def configured(
    model: str,
    model_config: Mapping[str, Any] | ModelConfig | None,
    mii_config: Mapping[str, Any] | MIIConfig | None,
    keywords: Mapping[str, Any],
) -> MIIConfig:
    """Put together what ``serve`` is given.

    Raises:
        UnknownArgument: a keyword is in neither configuration.
        ConfigurationError: a value has no meaning, or one thing is said twice, differently.
    """
    made = _put_together(model, model_config, mii_config, keywords)
    if len(quoted(made.name)) > _LONGEST_QUOTED:
        raise ConfigurationError(f"The name {made.name!r} is too long. Give a shorter deployment_name.")
    if made.enable_restful_api and made.port_number == made.restful_api_port:
        raise ConfigurationError(f"port_number and restful_api_port are both {made.port_number}. Give two.")
    return made


def _put_together(
    model: str,
    model_config: Mapping[str, Any] | ModelConfig | None,
    mii_config: Mapping[str, Any] | MIIConfig | None,
    keywords: Mapping[str, Any],
) -> MIIConfig:
    of_server = _plain(mii_config)
    of_model = _merged(
        _plain(of_server.pop("model_conf", None) or of_server.pop("model_config", None)), _plain(model_config)
    )
    for name, value in {**({"model_name_or_path": model} if model else {}), **keywords}.items():
        if name in ModelConfig.model_fields:
            of_model = _merged(of_model, {name: value})
        elif name in MIIConfig.model_fields and name != "model_conf":
            of_server = _merged(of_server, {name: value})
        else:
            raise UnknownArgument(name, [*ModelConfig.model_fields, *MIIConfig.model_fields])
    if not of_model.get("model_name_or_path"):
        raise ConfigurationError("Say which model: its name on the hub, or a folder.")
    for name in ("model_name_or_path", "tokenizer"):
        if of_model.get(name):
            of_model[name] = _found(name, str(of_model[name]))
    _say_unused({**of_model, **of_server})
    return _made(MIIConfig, {**of_server, "model_config": _made(ModelConfig, of_model)})


def pipeline_configured(
    model: str, model_config: Mapping[str, Any] | ModelConfig | None, keywords: Mapping[str, Any]
) -> ModelConfig:
    """Put together what ``pipeline`` is given.

    Raises:
        Exception: as ``configured``.
    """
    for name in keywords:
        if name not in ModelConfig.model_fields:
            raise UnknownArgument(name, list(ModelConfig.model_fields))
    return _put_together(model, model_config, None, keywords).model_conf


def _found(field: str, named: str) -> str:
    """Return the path of a folder, absolute, or a name on the hub.

    Raises:
        ConfigurationError: it can be neither.
    """
    folder = Path(named).expanduser()
    if is_folder(folder):
        if field == "model_name_or_path" and not (folder / "config.json").is_file():
            raise ConfigurationError(f"The folder {named!r} has no config.json, so it holds no model of Transformers.")
        return str(folder.absolute())
    if os.path.exists(folder) or not _ON_THE_HUB.fullmatch(named):
        raise ConfigurationError(f"{field} is {named!r}, which is neither a folder nor a name on the hub.")
    return named


def _plain(config: Mapping[str, Any] | BaseModel | None) -> dict[str, Any]:
    if isinstance(config, BaseModel):
        return config.model_dump(exclude_unset=True)
    return dict(config or {})


def _merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in other.items():
        if name in one and one[name] != value:
            raise ConfigurationError(f"{name} is said twice: {one[name]!r} and {value!r}. Say it once.")
    return {**one, **other}


def _made(kind: type[Config], given: Mapping[str, Any]) -> Config:
    known = {field.alias or name for name, field in kind.model_fields.items()}
    for name in given:
        if name not in known:
            raise UnknownArgument(name, sorted(known))
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ").replace("Input should", "should").removesuffix(".")
        raise ConfigurationError(f"{place} {said}.") from None


def _say_unused(given: Mapping[str, Any]) -> None:
    for name, reason in _UNUSED.items():
        if name in given and given[name] not in (None, "auto") and name not in _said:
            _said.add(name)
            warnings.warn(f"{name} is not used: {reason}.", UserWarning, stacklevel=5)
