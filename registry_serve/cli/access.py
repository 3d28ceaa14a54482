"""Who may ask what a command serves, and with which key a command asks."""

from __future__ import annotations

import shlex
from pathlib import Path

from registry_serve.errors import ConfigurationError
from registry_serve.protocols.gate import keys_in

LOOPBACK, EVERY_ADDRESS = "127.0.0.1", "0.0.0.0"  # noqa: S104 - only where somebody asks for it


def require_a_decision(host: str, api_key_file: str | Path | None, no_auth: bool) -> None:
    """Make sure that an endpoint that others reach is open because somebody wants it open.

    Raises:
        ConfigurationError: nobody said so, or the keys cannot be read.
    """
    if host not in (LOOPBACK, EVERY_ADDRESS):
        # HAProxy asks the replicas on loopback, and they listen where it does.
        raise ConfigurationError(f"--host is {LOOPBACK} or {EVERY_ADDRESS}, not {host}.")
    if api_key_file is not None:
        keys_in(api_key_file)
        if no_auth:
            raise ConfigurationError("--no-auth and --api-key-file contradict each other. Give one of them.")
    elif not no_auth and host != LOOPBACK:
        raise ConfigurationError(
            f"--host {host} lets others than this machine in. Give --api-key-file FILE, or --no-auth if it is to be "
            "open to everybody who reaches it."
        )


def authorization(api_key_file: str | Path | None) -> dict[str, str]:
    """Return the header that lets a request in: with the first key of a file, or none without a file.

    Raises:
        ConfigurationError: the keys cannot be read.
    """
    if api_key_file is None:
        return {}
    # A header is latin-1 to Python's client; a key is UTF-8, like its file.
    return {"authorization": f"Bearer {keys_in(api_key_file)[0]}".encode().decode("latin-1")}


def authorization_in_shell(api_key_file: str | Path | None) -> str:
    """Return what a ``curl`` line needs for the same; the key stays in its file, off the terminal and the history."""
    if api_key_file is None:
        return ""
    key = f"$(grep -m 1 -v -e '^ *#' -e '^ *$' {shlex.quote(str(api_key_file))})"
    return f' -H "Authorization: Bearer {key}"'
