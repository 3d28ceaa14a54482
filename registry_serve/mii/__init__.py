"""The names of DeepSpeed-MII, where programs for it look for them.

from registry_serve import mii

client = mii.serve("mistralai/Mistral-7B-v0.1")
"""

from registry_serve.mii import backend, config, errors
from registry_serve.persistent import (
    MIIConfig,
    ModelConfig,
    Response,
    client,
    pipeline,
    serve,
)
from registry_serve.persistent import PersistentClient as MIIClient

__all__ = [
    "MIIClient",
    "MIIConfig",
    "ModelConfig",
    "Response",
    "backend",
    "client",
    "config",
    "errors",
    "pipeline",
    "serve",
]
