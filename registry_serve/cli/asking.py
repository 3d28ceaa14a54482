"""``registry-serve ping`` and ``predict``: asking a deployment, by its name or its URL."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.highlighter import JSONHighlighter

from registry_serve import rollout
from registry_serve.cli.endpoint import Endpoint
from registry_serve.cli.screen import AsJson, console, print_json, say
from registry_serve.errors import ConfigurationError, RegistryServeError
from registry_serve.persistent import statuses
from registry_serve.registry import parse_reference

Target = Annotated[str, typer.Argument(metavar="NAME|URL", help="A deployment's name, or the address of any endpoint.")]
Keys = Annotated[Path | None, typer.Option("--api-key-file", help="A file of API keys; the first one is sent along.")]


def ping(
    target: Target,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.001)] = 60.0,
    api_key_file: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployment whether it is up; exit code 1 if it is not."""
    status = _endpoint(target, api_key_file, timeout).ping()
    if as_json:
        print_json({"status": status})
    else:
        say(f"{target} is up (HTTP {status}).")


def predict(
    target: Target,
    given: Annotated[
        str,
        typer.Option("--input", "-i", metavar="JSON|YAML|@FILE|-", help="What to send; - reads it from the input."),
    ],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.001)] = 60.0,
    version: Annotated[
        str | None, typer.Option(metavar="REF", help="Of a registered model: 3, @alias or latest.", show_default=False)
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the answer piece by piece, while it is made.")
    ] = False,
    api_key_file: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Send a deployment something to predict, and print its answer."""
    body = body_of(given)
    if version is not None and parse_reference(version) is None:
        raise ConfigurationError(f"--version {version!r} names no version. Write 3, @alias or latest.")
    endpoint = _endpoint(target, api_key_file, timeout)
    if stream:
        for piece in endpoint.stream(body, version):
            _put(piece)
        return
    answer = endpoint.predict(body, version)
    if as_json:
        _put(answer)
    else:
        _print(_parsed(endpoint.url, answer))


def _endpoint(target: str, api_key_file: Path | None, timeout_s: float) -> Endpoint:
    if ":" in target or "/" in target:  # names hold neither
        return Endpoint(target, api_key_file=api_key_file, timeout_s=timeout_s)
    statuses.require_of_a_file(target)
    running = rollout.running(target)
    return Endpoint(running.url, api_key_file=api_key_file or running.api_key_file, timeout_s=timeout_s)


def body_of(given: str) -> bytes:
    """Return the JSON that ``--input`` means; what is JSON already stays as it is, to the letter.

    Raises:
        ConfigurationError: it is neither JSON nor YAML, or cannot be read.
    """
    text = _read(given)
    try:
        json.loads(text)
    except ValueError:
        return _from_yaml(text)
    return text.encode(errors="surrogateescape")


def _read(given: str) -> str:
    try:
        if given == "-":
            return sys.stdin.read()
        return Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigurationError(f"--input {given} cannot be read: {reason}.") from None


def _from_yaml(text: str) -> bytes:
    try:
        value = yaml.safe_load(text)
        # Any word is YAML; what cannot be a body is more likely a slip of the quotes.
        if isinstance(value, (dict, list)):
            return json.dumps(value, default=_plain, allow_nan=False).encode()
    except (yaml.YAMLError, ValueError, TypeError):
        pass
    raise ConfigurationError(
        """--input is neither a JSON nor a YAML object. Write it like '{"inputs": ["some text"]}', """
        "or put it into a file and give --input @FILE."
    )


def _plain(value: object) -> str:
    # YAML reads what looks like a date as one; JSON has none.
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    raise TypeError


def _parsed(url: str, answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        raise RegistryServeError(f"{url} answered something that is no JSON. --json prints it as it is.") from None


def _print(value: Any) -> None:
    """Print JSON: for people on a terminal, in one line for programs."""
    if console.is_terminal:
        pretty = json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace").decode()
        console.print(JSONHighlighter()(pretty), soft_wrap=True)
        return
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half of a surrogate pair has no UTF-8; this writes it as JSON's own escape.
    _put(compact.encode(errors="backslashreplace"))


def _put(answer: bytes) -> None:
    """Write what was answered as it is, and at once."""
    sys.stdout.write(answer.decode("utf-8", "replace").rstrip("\n") + "\n")
    sys.stdout.flush()
