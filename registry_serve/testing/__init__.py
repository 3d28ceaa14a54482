"""For teams that test their own handlers and models: no cluster, no MLflow server, no files.

Under pytest the fixtures ``handler_client`` and ``memory_registry`` are there by themselves. Everywhere else:

    with HandlerClient(Shout) as client:
        assert client.predict(["hello"]) == ["HELLO!"]
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from registry_serve.testing.assertions import assert_problem
    from registry_serve.testing.clients import HandlerClient, ModelClient, RequestFailed
    from registry_serve.testing.registry import MemoryRegistry

__all__ = ["HandlerClient", "MemoryRegistry", "ModelClient", "RequestFailed", "assert_problem"]

#: Imported when they are asked for: pytest imports this package for its plugin, also where no test uses it.
_LATE = {
    "HandlerClient": "clients",
    "MemoryRegistry": "registry",
    "ModelClient": "clients",
    "RequestFailed": "clients",
    "assert_problem": "assertions",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    return value
