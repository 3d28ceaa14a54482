"""Persistent deployments: language models that stay online when the program that served them has ended.

The names are those of DeepSpeed-MII, which programs for it find below ``registry_serve.mii`` as well.
"""

from registry_serve.persistent.clients import PersistentClient
from registry_serve.persistent.config import MIIConfig, ModelConfig, ReplicaConfig
from registry_serve.persistent.options import GenerateParamsConfig
from registry_serve.persistent.pipelines import Pipeline, pipeline
from registry_serve.persistent.response import Response
from registry_serve.persistent.starting import client, serve

__all__ = [
    "GenerateParamsConfig",
    "MIIConfig",
    "ModelConfig",
    "PersistentClient",
    "Pipeline",
    "ReplicaConfig",
    "Response",
    "client",
    "pipeline",
    "serve",
]
