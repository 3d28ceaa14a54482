"""The pytest plugin. It is loaded wherever this package is installed, so it imports nothing before a test asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from registry_serve.testing import HandlerClient, MemoryRegistry


@pytest.fixture
def handler_client() -> Iterator[Callable[..., HandlerClient]]:
    """A factory of clients for model handlers: ``handler_client(MyHandler, model_parameters={...})``."""
    from registry_serve.testing.clients import HandlerClient

    with ExitStack() as clients:

        def make(handler: str | type | None = None, **options: Any) -> HandlerClient:
            return clients.enter_context(HandlerClient(handler, **options))

        yield make


@pytest.fixture
def memory_registry() -> Iterator[MemoryRegistry]:
    """A registry in memory: ``memory_registry.add("name", model, ...)``, then ``memory_registry.client("name")``."""
    from registry_serve.testing.registry import MemoryRegistry

    with MemoryRegistry() as registry:
        yield registry
