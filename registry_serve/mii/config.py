"""``mii.config``: how models are served, and what calls may ask."""

from registry_serve.persistent import GenerateParamsConfig, MIIConfig, ModelConfig, ReplicaConfig

__all__ = ["GenerateParamsConfig", "MIIConfig", "ModelConfig", "ReplicaConfig"]
