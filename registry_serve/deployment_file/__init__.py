"""The deployment file: YAML as MosaicML's custom deployments have it, and fields of our own."""

from registry_serve.deployment_file.checking import parse
from registry_serve.deployment_file.fields import (
    Batching,
    CheckpointPath,
    Compute,
    DefaultModel,
    DeploymentFile,
    EnvVariable,
    GitRepo,
    Model,
    OtherIntegration,
    PipPackages,
)
from registry_serve.deployment_file.gpu_types import accelerator_type
from registry_serve.deployment_file.notices import notices
from registry_serve.deployment_file.reading import read
from registry_serve.deployment_file.schema import json_schema
from registry_serve.deployment_file.secrets import masked

__all__ = [
    "Batching",
    "CheckpointPath",
    "Compute",
    "DefaultModel",
    "DeploymentFile",
    "EnvVariable",
    "GitRepo",
    "Model",
    "OtherIntegration",
    "PipPackages",
    "accelerator_type",
    "json_schema",
    "masked",
    "notices",
    "parse",
    "read",
]
