"""A line to the process that holds the background cluster: it calls functions there, where Ray is connected.

A process can join a cluster that asks for a token only if it was started for that, and connecting takes seconds. The
process that holds the cluster is connected already. What is sent are pickles, so nobody but the owner can read the key.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, TypeVar

from registry_serve.errors import ConfigurationError, RegistryServeError

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]
Answer = TypeVar("Answer")


def ask(socket: str, key: bytes, function: Callable[..., Answer], *given: Any, tell: Tell) -> Answer:
    """Call a function of this package at the other end, with ``tell`` as its last argument.

    Raises:
        RegistryServeError: as the function does.
        ConfigurationError: nobody is there any more.
    """
    try:
        with Client(socket, "AF_UNIX", authkey=key) as connection:
            connection.send((function, given))
            while True:
                kind, value = connection.recv()
                if kind == "done":
                    answer: Answer = value
                    return answer
                if kind == "failed":
                    raise value
                tell(value)
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
        function, given = connection.recv()
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
