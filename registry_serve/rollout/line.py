"""A line to the process that holds the background cluster: it calls functions there, where Ray is connected.

A process can join a cluster that asks for a token only if it was started for that, and connecting takes seconds. The
process that holds the cluster is connected already. What is sent are pickles, so nobody but the owner can read the key.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, TypeVar

from registry_serve.errors import ConfigurationError, RegistryServeError

logger = logging.getLogger(__name__)

_OTHER_RELEASE = (
    "The Ray cluster in the background was started by another release. Delete all deployments, and deploy them again."
)

Tell = Callable[[str], None]
Answer = TypeVar("Answer")


def ask(socket: str, key: bytes, function: Callable[..., Answer], *given: Any, tell: Tell) -> Answer:
    """Call a function of this package at the other end, with ``tell`` as its last argument.

    Raises:
        RegistryServeError: as the function does.
        ConfigurationError: nobody is there any more.
    """
    with _unless_it_ends():
        connection = Client(socket, "AF_UNIX", authkey=key)
    with connection:
        with _unless_it_ends():
            connection.send((function, given))
        while True:
            with _unless_it_ends():
                kind, value = connection.recv()
            if kind == "done":
                answer: Answer = value
                return answer
            if kind == "failed":
                raise value
            tell(value)


@contextmanager
def _unless_it_ends() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise ConfigurationError("The Ray cluster in the background has ended unexpectedly. Deploy again.") from None


def answer(listener: Listener) -> None:
    """Answer whoever calls, for ever."""
    while True:
        with suppress(EOFError, OSError, AuthenticationError):
            threading.Thread(target=_answer, args=(listener.accept(),), daemon=True).start()


def _answer(connection: Connection) -> None:
    def tell(doing: str) -> None:
        connection.send(("doing", doing))

    with connection, suppress(EOFError, OSError):  # of a caller that leaves; what it asked for goes on in Serve
        try:
            function, given = connection.recv()
        except (EOFError, OSError):
            raise
        except Exception:
            logger.exception("A pickle cannot be read.")
            connection.send(("failed", ConfigurationError(_OTHER_RELEASE)))
            return
        try:
            said = ("done", function(*given, tell))
        except RegistryServeError as error:
            said = ("failed", error)
        except OSError:
            raise
        except Exception as error:
            logger.exception("%s failed.", function.__name__)
            said = ("failed", ConfigurationError(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
        connection.send(said)
