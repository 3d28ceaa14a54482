"""Model handlers: models of any kind, with their own way to load and to answer."""

from registry_serve.handlers.contract import HandlerContract, OnlyVersion, only_version
from registry_serve.handlers.interface import ModelHandlerInterface
from registry_serve.handlers.loading import build, handler_class
from registry_serve.handlers.schema import HandlerSchema, inputs_and_parameters
from registry_serve.handlers.spec import HandlerSpec

__all__ = [
    "HandlerContract",
    "HandlerSchema",
    "HandlerSpec",
    "ModelHandlerInterface",
    "OnlyVersion",
    "build",
    "handler_class",
    "inputs_and_parameters",
    "only_version",
]
