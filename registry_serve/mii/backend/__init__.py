"""``mii.backend``: the client."""

from registry_serve.mii.backend.client import MIIClient

__all__ = ["MIIClient"]
