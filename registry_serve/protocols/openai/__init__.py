"""The front of OpenAI's clients: completions, chat completions, and the models to choose from.

    POST /v1/completions        a text, or several   ->  how it goes on
    POST /v1/chat/completions   a conversation       ->  the reply
    GET  /v1/models             the names that ``model`` may have

``model`` is the deployment's name, or ``NAME:VERSION``, where VERSION is a number, ``latest`` or an alias.
"""

from __future__ import annotations

from starlette.types import ASGIApp

from registry_serve.dataplane import DataPlane
from registry_serve.protocols.front import Endpoint
from registry_serve.protocols.openai.answering import Completions
from registry_serve.protocols.openai.answers import CHAT, COMPLETIONS
from registry_serve.protocols.openai.models import model_pages
from registry_serve.protocols.openai.requests import ChatRequest, CompletionRequest


def endpoints(plane: DataPlane) -> dict[str, ASGIApp]:
    """Return what answers a ``POST``, by path."""
    return {
        "/v1/completions": Completions(plane, CompletionRequest, COMPLETIONS),
        "/v1/chat/completions": Completions(plane, ChatRequest, CHAT),
    }


def pages(plane: DataPlane) -> dict[str, Endpoint]:
    """Return what answers a ``GET``, by path."""
    return model_pages(plane)
