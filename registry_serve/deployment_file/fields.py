"""The fields of a deployment file: types, ranges and defaults. What binds several fields is in ``rules``.

Each description is also the JSON Schema's, and the documentation's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from registry_serve.deployment_file.names import as_rfc1123
from registry_serve.policies import BatchPolicy

#: A module's path may hold dashes, which an ``import`` statement may not.
DOTTED_PATH = r"^[\w-]+(\.[\w-]+)*$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"

TASKS = ("text-generation", "feature-extraction")


def _as_text(value: Any) -> Any:
    """Spell a number or a boolean as YAML does."""
    return json.dumps(value) if isinstance(value, (int, float)) else value


def _as_written(number: float) -> float:
    return int(number) if number.is_integer() else number


Name = Annotated[str, Field(min_length=1), BeforeValidator(as_rfc1123)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_as_written)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_as_written)]
Text = Annotated[str, Field(min_length=1)]
Dotted = Annotated[str, Field(pattern=DOTTED_PATH)]
Count = Annotated[int, Field(ge=1)]
Written = Annotated[
    str, BeforeValidator(_as_text), Field(json_schema_extra={"type": ["string", "number", "boolean", "null"]})
]


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )

    @model_validator(mode="before")
    @classmethod
    def _an_empty_key_is_absent(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {key: value for key, value in given.items() if value is not None or key not in cls.model_fields}


class Compute(_Section):
    """What each replica gets of the cluster."""

    gpus: NotNegative = Field(0, description="GPUs of each replica: a whole number, or a fraction below 1 to share one")
    gpu_type: Text | None = Field(
        None,
        description="kind of GPU, such as `a100_40gb`; sends replicas to nodes that have it. Ignored with `gpus: 0`",
    )
    cpus: Positive | None = Field(None, description="CPUs of each replica; Ray's 1 if not given")
    cluster: Text | None = Field(None, description="name of a MosaicML cluster")
    instance: Text | None = Field(None, description="name of a MosaicML instance type")
    nodes: Count | None = Field(None, description="number of nodes; here each replica fits on one")


class Batching(_Section):
    """When requests go to the model in one call. A free model takes what waits."""

    max_batch_size: Count = Field(BatchPolicy.max_batch_size, description="inputs of one call")
    max_timeout_ms: NotNegative = Field(
        0, description="how long a free model lets requests gather before it takes them"
    )
    max_batch_size_in_bytes: Count | None = Field(None, description="how large the bodies of one call may be together")
    max_queue_size: Count = Field(
        BatchPolicy.max_waiting, description="requests that may wait on one replica; further ones get 429"
    )


class EnvVariable(_Section):
    """One variable of the replicas' environment."""

    key: Annotated[str, Field(pattern=VARIABLE)] = Field(description="name of the variable")
    value: Written = Field(
        repr=False, description="its value, kept as it is written: `0123` and `yes` stay text. Never shown again"
    )


class GitRepo(_Section):
    """Code for the replicas."""

    integration_type: Literal["git_repo"] = Field(description="`git_repo`")
    git_repo: Text = Field(
        description="a folder (relative to this file's), `org/repo`, or a URL. The replicas import from the "
        "repository, and from its parent folder under the repository's name"
    )
    git_branch: Annotated[Written, Field(min_length=1)] | None = Field(
        None, description="branch to check out; the repository's own default if not given"
    )
    git_commit: Annotated[Written, Field(min_length=1)] | None = Field(
        None, description="commit to check out; wins over `git_branch`"
    )
    path: Text | None = Field(
        None,
        description="folder it is put in; its last part is the name to import. The repository's name if not given",
    )
    ssh_clone: bool = Field(False, description="clone `org/repo` by ssh and not by https")
    host: Text = Field("github.com", description="where `org/repo` is")
    pip_install: Text | None = Field(None, description="arguments of a `pip install` in the repository")


class PipPackages(_Section):
    """Packages for the replicas."""

    integration_type: Literal["pip_packages"] = Field(description="`pip_packages`")
    packages: list[Text] = Field(description="requirements as pip takes them; they become Ray's runtime environment")


class OtherIntegration(_Section):
    """Accepted, and not used here."""

    model_config = ConfigDict(extra="allow")

    integration_type: Literal["apt_packages", "wandb", "comet_ml"] = Field(
        description="`apt_packages`, `wandb` or `comet_ml`; their other keys are not looked at"
    )


Integration = Annotated[GitRepo | PipPackages | OtherIntegration, Field(discriminator="integration_type")]


class CheckpointPath(_Section):
    """Where a checkpoint is: exactly one of them."""

    hf_path: Text | None = Field(None, description="name on the Hugging Face hub")
    s3_path: Text | None = Field(None, description="address in S3: `s3://bucket/folder`")
    gcp_path: Text | None = Field(None, description="address in Google Cloud Storage: `gs://bucket/folder`")


class CustomModel(_Section):
    """The older place of the handler."""

    model_handler: Dotted | None = Field(None, description="older place of `model.model_handler`")


class Model(_Section):
    """What is served: a handler, or a model of the registry."""

    model_handler: Dotted | None = Field(
        None, description="dotted path of the handler's class, or a registered name; the default handler if not given"
    )
    model_parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="keywords for the handler. The default handler needs `task`, which is `text-generation` or "
        "`feature-extraction`",
    )
    downloader: Dotted | None = Field(
        None,
        description="dotted path of a function, or a registered name. It is called once on each node, before "
        "the handler is built",
    )
    download_parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="keywords for the downloader. Without one: at most one of `hf_path`, `s3_path`, `gcp_path`",
    )
    registered_model: Text | None = Field(
        None, description="name of a model in the MLflow registry, served instead of a handler"
    )
    version: Annotated[Written, Field(min_length=1)] | None = Field(
        None,
        description="its default version: a number, `latest` or an alias. If not given, the alias `champion` "
        "where there is one, else the latest",
    )
    backend: Text | None = Field(None, description="MosaicML's inference engine, such as `faster_transformers`")
    checkpoint_path: CheckpointPath | None = Field(
        None, deprecated=True, description="older place of `hf_path`, `s3_path` and `gcp_path`"
    )
    custom_model: CustomModel | None = Field(None, deprecated=True, description="older place of `model_handler`")


class DefaultModel(_Section):
    """The default handler, said shortly."""

    model_type: Text = Field(
        description="`text-generation` or `feature-extraction`; any other, such as `mpt-7b`, means `text-generation`"
    )
    checkpoint_path: CheckpointPath = Field(description="where the model is: exactly one of these")

    @property
    def task(self) -> str:
        """The default handler's ``task``."""
        return self.model_type if self.model_type in TASKS else TASKS[0]


class DeploymentFile(_Section):
    """A deployment: what is served, on what, with what around it. Built by ``read`` and ``parse``."""

    model_config = ConfigDict(extra="allow")

    name: Name = Field(
        description="of the deployment: lower-case letters, digits and dashes, at most 63. Others are converted"
    )
    replicas: Count = Field(1, description="processes that serve the model")
    image: Text | None = Field(None, description="container image")
    command: Text | None = Field(None, description="shell command")
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="anything; kept with the deployment and shown again"
    )
    env_variables: list[EnvVariable] = Field(default_factory=list, description="environment of the replicas")
    integrations: list[Integration] = Field(default_factory=list, description="code and packages of the replicas")
    rate_limit: Positive | None = Field(
        None,
        description="requests per second of the whole deployment, shared out evenly among its replicas; "
        'beyond it 429 `{"error": "Rate limit exceeded"}`',
    )
    compute: Compute = Field(default_factory=Compute, description="what each replica gets of the cluster")
    batching: Batching = Field(default_factory=Batching, description="when requests go to the model in one call")
    model: Model | None = Field(None, description="what is served; either this or `default_model`")
    default_model: DefaultModel | None = Field(None, description="the default handler, said shortly")
    gpu_num: NotNegative | None = Field(None, deprecated=True, description="older name of `compute.gpus`")
    gpu_type: Text | None = Field(None, deprecated=True, description="older place of `compute.gpu_type`")
    cluster: Text | None = Field(None, deprecated=True, description="older place of `compute.cluster`")

    _name_as_written: str = PrivateAttr("")

    @model_validator(mode="wrap")
    @classmethod
    def _keep_the_written_name(cls, given: Any, build: ModelWrapValidatorHandler[DeploymentFile]) -> DeploymentFile:
        file = build(given)
        if isinstance(given, Mapping):
            file._name_as_written = given["name"]
        return file

    @property
    def name_as_written(self) -> str:
        """What the file says; ``name`` is made of it."""
        return self._name_as_written
