"""``mii.backend.client``: the client."""

from registry_serve.persistent import PersistentClient as MIIClient

__all__ = ["MIIClient"]
