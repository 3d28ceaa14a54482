"""Which function downloads a model: the user's own, one of a package's entry points, or a built-in one.

The built-in ones are entry points like any other package's.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from registry_serve.errors import ConfigurationError, DownloadFailed

ENTRY_POINTS = "registry_serve.downloaders"
#: Keys that choose a downloader where none is named, with the entry points that they choose.
CHOSEN_BY_KEY = {"hf_path": "huggingface", "s3_path": "s3", "gcp_path": "gcs"}

_CHECKS_ITSELF = "__registry_serve_checks_itself__"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Download:
    """What brings a model's files to a node.

    Attributes:
        downloader: dotted path of a function (folder names may have dashes), the name of an entry point in the group
            ``registry_serve.downloaders``, or a function that is written with ``def`` at the top of a module. None:
            the one that the parameters' keys choose.
        parameters: keywords of the function. Without a downloader at most one of ``hf_path``, ``s3_path``,
            ``gcp_path``.
    """

    downloader: str | Callable[..., Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plugin:
    """A function with the keywords that it is called with.

    Attributes:
        name: of the function, for people.
        what: is downloaded, for people, without credentials.
        key: tells it from other downloads of a node; changes with the name, the parameters and the function's code.
        checks_itself: it finds out by itself what is there already.
    """

    function: Callable[..., Any]
    parameters: Mapping[str, Any]
    name: str
    what: str
    key: str

    @property
    def checks_itself(self) -> bool:
        return getattr(self.function, _CHECKS_ITSELF, False)


def checks_itself(function: F) -> F:
    """Have a downloader called at every fetch: it sees by itself, and soon, whether anything must be downloaded."""
    setattr(function, _CHECKS_ITSELF, True)
    return function


def plugin_of(download: Download) -> Plugin | None:
    """Find the function, and make sure that it can be called with the parameters; None: there is nothing to do.

    Raises:
        ConfigurationError: there is no such function, it cannot be told from others, or it takes other parameters.
    """
    chosen = download.downloader or _chosen_by_key(download.parameters)
    if chosen is None:
        return None
    function = _imported(chosen) if isinstance(chosen, str) else chosen
    dotted = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    name = chosen if isinstance(chosen, str) else dotted
    _check_function(function, name)
    if isinstance(chosen, str):
        # What its name stands for may be made elsewhere, as by functools.partial.
        naming = _text_of(sys.modules.get(chosen.rpartition(".")[0]))
    else:
        _check_has_no_state(function, name)
        naming = b""
    _check_parameters(function, name, download.parameters)
    key = hashlib.sha256()
    for part in (name.encode(), dotted.encode(), naming, _written(download.parameters), _code_of(function)):
        key.update(hashlib.sha256(part).digest())
    return Plugin(function, download.parameters, name, _what(name, download.parameters), key.hexdigest()[:40])


def installed(module: str, extra: str, what: str) -> Any:
    """Import a library that only one downloader needs.

    Raises:
        DownloadFailed: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        reason = f"the client library {package!r} is missing; pip install 'registry-serve[{extra}]'"
        raise DownloadFailed(what, reason) from error


def without_credentials(uri: str) -> str:
    """Return an address as it may be shown: without a user's name and password, and without signatures."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition(":")[0]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _chosen_by_key(parameters: Mapping[str, Any]) -> str | None:
    keys = [key for key in CHOSEN_BY_KEY if key in parameters]
    if len(keys) > 1:
        raise ConfigurationError(f"Of {', '.join(CHOSEN_BY_KEY)}, at most one may be given, not {' and '.join(keys)}.")
    if keys:
        return CHOSEN_BY_KEY[keys[0]]
    if parameters:
        given, known = ", ".join(map(str, parameters)), ", ".join(CHOSEN_BY_KEY)
        raise ConfigurationError(f"Name a downloader for the parameters {given}, or give one of {known} without any.")
    return None


def _imported(reference: str) -> Any:
    known = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    module, dot, name = reference.rpartition(".")
    try:
        if reference in known:
            return known[reference].load()
        if dot:
            return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        reason = f"there is no module {error.name!r} on the path; name its repository under integrations, or install it"
        raise ConfigurationError(f"The downloader {reference!r} cannot be imported: {reason}.") from error
    except AttributeError as error:
        if error.name == name:
            reason = f"its module {module!r} has no function {name!r}"
            raise ConfigurationError(f"There is no downloader {reference!r}: {reason}.") from None
        raise ConfigurationError(f"Importing the downloader {reference!r} raised AttributeError.") from error
    except Exception as error:
        raise ConfigurationError(f"Importing the downloader {reference!r} raised {type(error).__name__}.") from error
    names = ", ".join(sorted(known)) or "none"
    raise ConfigurationError(
        f"There is no downloader {reference!r}: give a function's dotted path such as package.module.function, "
        f"or one of these names: {names}."
    )


def _check_function(function: Any, name: str) -> None:
    if not callable(function):
        raise ConfigurationError(f"The downloader {name!r} is not a function.")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigurationError(f"The downloader {name!r} must be a plain function: calling this one does nothing.")


def _check_has_no_state(function: Callable[..., Any], name: str) -> None:
    """Refuse closures, methods, partials and lambdas: nothing that a key is made of tells two of them apart."""
    plain = inspect.isfunction(function) and function.__closure__ is None
    if not plain or function.__name__ == "<lambda>" or function.__qualname__ != function.__name__:
        raise ConfigurationError(
            f"The downloader {name!r} cannot be told from others like it: give a dotted path, or a function that is "
            "written with def at the top of a module and has no decorator; what differs goes into its parameters."
        )


def _check_parameters(function: Callable[..., Any], name: str, given: Mapping[str, Any]) -> None:
    try:
        taken = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C need not have one
        return
    named = [each for each in taken if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    unknown = [str(key) for key in given if key not in {each.name for each in named}]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in taken):
        takes = ", ".join(each.name for each in named) or "none"
        raise ConfigurationError(f"The downloader {name!r} takes no {', '.join(unknown)}; its parameters are: {takes}.")
    missing = [each.name for each in named if each.default is each.empty and each.name not in given]
    if missing:
        raise ConfigurationError(f"The downloader {name!r} needs {', '.join(missing)} in its parameters.")


def _what(name: str, parameters: Mapping[str, Any]) -> str:
    paths = [parameters[key] for key in CHOSEN_BY_KEY if isinstance(parameters.get(key), str)]
    return without_credentials(paths[0]) if len(paths) == 1 else name


def _written(parameters: Mapping[str, Any]) -> bytes:
    return json.dumps(parameters, sort_keys=True, default=repr).encode()


def _code_of(function: Any) -> bytes:
    """Return the text of a function's module, its line there, and its defaults: changed code is another downloader."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return _text_of(function)
    defaults = _plain((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))
    text = _text_of(function)
    if text:
        return text + repr((code.co_firstlineno, defaults)).encode()
    # Typed in, or sent by value from elsewhere.
    return bytes(code.co_code) + repr((code.co_names, _plain(code.co_consts), defaults)).encode()


def _text_of(part: Any) -> bytes:
    """Return the text of the file that a function or a module is from; nothing where there is none."""
    try:
        file = inspect.getsourcefile(part)
        return b"" if file is None else Path(file).read_bytes()
    except (TypeError, ValueError, OSError):
        return b""


def _plain(values: Iterable[Any]) -> list[Any]:
    """Return those that are written in the same way by each process."""
    return [each for each in values if isinstance(each, (str, bytes, int, float))]
