"""Finding a handler's class, and building the handler."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from registry_serve.downloaders import Download, fetch, forget
from registry_serve.errors import HandlerInvalid, RegistryServeError
from registry_serve.handlers.calls import Handler, takes_body
from registry_serve.handlers.spec import HandlerSpec

#: Handlers that are known by a name of their own, the built-in one among them.
ENTRY_POINTS = "registry_serve.handlers"
#: Where MosaicML's server put what it downloaded from an object store. Parameters that name it mean our copy.
LOCAL_MODEL = "/mosaicml/local_model"
_MODEL_PARAMETER = "model_name_or_path"

logger = logging.getLogger(__name__)


def handler_class(spec: HandlerSpec) -> type:
    """Import the class of a handler, and make sure that it is one.

    Raises:
        HandlerInvalid: there is no such class, it cannot be imported, or it has no ``predict``.
    """
    for folder in spec.code_paths:
        path = str(Path(folder).resolve())
        if path not in sys.path:
            sys.path.append(path)
    found = _imported(spec.handler) if isinstance(spec.handler, str) else spec.handler
    if not isinstance(found, type):
        raise HandlerInvalid(spec.name, "it is not a class")
    takes_body(found, spec.name)
    return found


def build(spec: HandlerSpec) -> Handler:
    """Download what a handler needs, and build it. Blocks.

    A download that an earlier process of this node made is used again. If the handler cannot be built from it because
    files are missing, it is made once more, unless another process uses it.

    Raises:
        HandlerInvalid: the handler cannot be built.
        DownloadFailed: the download failed.
    """
    kind = handler_class(spec)
    _check_parameters(kind, spec)
    directory = fetch(spec.download)
    try:
        return _built(kind, spec, directory)
    except HandlerInvalid as error:
        if not _lacks_files(error) or not forget(spec.download):
            raise
        logger.warning("%s is downloaded again: files of an earlier download are missing.", spec.name, exc_info=True)
    return _built(kind, spec, fetch(spec.download))


def _imported(reference: str) -> Any:
    module, dot, name = reference.rpartition(".")
    if not dot:
        return _entry_point(reference)
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            reason = f"there is no module {error.name!r} on the replica's path; name its repository under integrations"
        else:
            reason = f"its module needs {error.name!r}, which is not installed"
        raise HandlerInvalid(reference, reason) from error
    except AttributeError as error:
        if error.name != name:
            raise HandlerInvalid(reference, f"importing its module raised AttributeError: {error}") from error
        raise HandlerInvalid(reference, f"the module {module!r} has no class {name!r}") from None
    except Exception as error:
        raise HandlerInvalid(reference, f"importing its module raised {_told(error)}") from error


def _entry_point(name: str) -> Any:
    known = {each.name: each for each in entry_points(group=ENTRY_POINTS)}
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise HandlerInvalid(name, f"write its dotted path, such as package.module.Class, or one of the names: {names}")
    try:
        return known[name].load()
    except Exception as error:
        raise HandlerInvalid(name, f"importing it raised {_told(error)}") from error


def _built(kind: type, spec: HandlerSpec, directory: Path | None) -> Handler:
    try:
        handler: Handler = kind(**_with_directory(kind, spec.parameters, directory))
    except RegistryServeError:
        raise
    except Exception as error:
        raise HandlerInvalid(spec.name, f"building it raised {_told(error)}") from error
    return handler


def _lacks_files(error: BaseException) -> bool:
    """Say whether the innermost ``OSError`` among an error's causes is one about missing files."""
    innermost, cause = None, error.__cause__
    while cause is not None:
        innermost, cause = (cause if isinstance(cause, OSError) else innermost), cause.__cause__
    # Exactly these: subclasses are about networks. Transformers raises the bare OSError.
    missing = type(innermost) is OSError and innermost.errno is None
    return missing or type(innermost) in (FileNotFoundError, NotADirectoryError)


def _with_directory(kind: type, parameters: Mapping[str, Any], directory: Path | None) -> dict[str, Any]:
    """Tell the handler where the model is that was downloaded for it, if it has a way to be told."""
    if directory is None:
        return dict(parameters)
    placed = {name: _placed(value, directory) for name, value in parameters.items()}
    named = inspect.signature(kind).parameters.get(_MODEL_PARAMETER)
    if named is not None and named.kind is not inspect.Parameter.VAR_KEYWORD:
        placed.setdefault(_MODEL_PARAMETER, str(directory))
    return placed


def _placed(value: Any, directory: Path) -> Any:
    if isinstance(value, str) and (value == LOCAL_MODEL or value.startswith(f"{LOCAL_MODEL}/")):
        return str(directory) + value.removeprefix(LOCAL_MODEL)
    return value


def _check_parameters(kind: type, spec: HandlerSpec) -> None:
    """Make sure that the class can be called with its keywords, and name those it cannot be called with.

    Raises:
        HandlerInvalid: it cannot.
    """
    try:
        taken = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):  # a class without a readable signature says it itself
        return
    known = [each for each in taken if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    names = [each.name for each in known]
    unknown = sorted(spec.parameters.keys() - set(names))
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in taken):
        takes = ", ".join(names) or "none"
        raise HandlerInvalid(spec.name, f"{kind.__name__} takes no parameter {', '.join(unknown)}; it takes {takes}")
    # A download may bring the model's folder along.
    given = {*spec.parameters, *([_MODEL_PARAMETER] if spec.download != Download() else [])}
    missing = [each.name for each in known if each.default is each.empty and each.name not in given]
    if missing:
        raise HandlerInvalid(spec.name, f"{kind.__name__} needs {', '.join(missing)} in model_parameters")


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
