"""A registry to try things on: small but real Transformers models, trained here in less than a minute."""

from registry_serve.demo.registry import DemoRegistry, build

__all__ = ["DemoRegistry", "build"]
