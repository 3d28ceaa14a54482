"""``mii.errors``: what ``serve`` and ``client`` raise."""

from registry_serve.errors import DeploymentNotFound as DeploymentNotFoundError
from registry_serve.errors import UnknownArgument

__all__ = ["DeploymentNotFoundError", "UnknownArgument"]
