"""Storing a handler as a version of a registered model."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow.pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import Schema

from registry_serve.downloaders import Download
from registry_serve.errors import ConfigurationError, HandlerInvalid, InvalidRequest
from registry_serve.handlers import columns, logged
from registry_serve.handlers.annotations import annotations_of
from registry_serve.handlers.calls import streams, takes_body
from registry_serve.handlers.imports import is_inside, is_somewhere, names_in, requirements_of
from registry_serve.handlers.loading import ENTRY_POINTS, build, handler_class
from registry_serve.handlers.spec import DEFAULT_HANDLER, HandlerSpec
from registry_serve.registry import database_file

#: Where MLflow keeps models and runs beside the code if it is told nothing; each version would hold all before it.
_STORES = ("mlruns", "mlartifacts", "mlflow.db", "mlflow.db-*")
_NO_CODE = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "venv", "node_modules", *_STORES)


def log_handler(
    handler: str | type | None = None,
    *,
    name: str = "model",
    registered_model_name: str | None = None,
    model_parameters: Mapping[str, Any] | None = None,
    downloader: str | Callable[..., Any] | None = None,
    download_parameters: Mapping[str, Any] | None = None,
    code_paths: Sequence[str | Path] = (),
    input_example: Sequence[Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    signature: ModelSignature | None = None,
    pip_requirements: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> ModelInfo:
    """Store a handler as an MLflow model, which ``deployment_from_model_name`` serves like any other.

        log_handler(
            "shouting.handler.Shout", registered_model_name="shout", code_paths=["."], input_example=["hello"]
        )

    The model has one column, ``input``, and answers with one output for each row. Without ``signature`` the handler is
    built here once, download included, and answers the example, so that MLflow learns what its outputs look like.
    Everything given here can be read in the registry: keep secrets in environment variables.

    Args:
        handler: a class with ``predict(self, model_requests)``, its dotted path, or the name of an entry point in the
            group ``registry_serve.handlers``; the built-in Hugging Face handler if not given.
        name: of the logged model, as for MLflow's ``log_model``.
        registered_model_name: registers a new version under this name.
        model_parameters: keywords that the handler is built with, as JSON has them.
        downloader: a function that fetches the model, its dotted path, or the name of an entry point in the group
            ``registry_serve.downloaders``; it runs once per node, when a replica loads the version.
        download_parameters: keywords that the downloader is called with.
        code_paths: what goes along: folders to import modules from, folders of packages, files. Environments, hidden
            files, and what MLflow keeps beside the code stay here.
        input_example: some inputs. Versions whose rows turn out to be independent of each other, on this example, are
            called with the inputs of several requests at once.
        parameters: settings that a request may give, with their defaults.
        signature: of the model, where the handler cannot be built here; nothing is then built or downloaded.
        pip_requirements: packages that the version needs; if not given, those that its code imports.
        metadata: as for MLflow's ``log_model``.
        tags: as for MLflow's ``log_model``.

    Returns:
        What MLflow's ``log_model`` returns.

    Raises:
        HandlerInvalid: the handler cannot be used, or its code does not go along.
        DownloadFailed: the download failed.
        ConfigurationError: the signature cannot be told, or an argument makes no sense.
    """
    with TemporaryDirectory(prefix="registry-serve-log-") as directory:
        code, file = Path(directory, "code"), Path(directory, "handler.json")
        _gather(code_paths, code)
        download = Download(_dotted(downloader), dict(download_parameters or {}))
        spec = HandlerSpec(_dotted(handler or DEFAULT_HANDLER), dict(model_parameters or {}), download)
        file.write_text(_written(spec), encoding="utf-8")
        modules = _modules(spec, code)
        requirements = requirements_of(spec.name, modules, code)
        with _imported_from(code):
            kind = _kind(spec)
            example = None if input_example is None else list(input_example)
            given = dict(parameters or {})
            signed = _checked(signature, given) if signature else _signature(spec, kind, example, given)
        info: ModelInfo = Model.log(
            artifact_path=None,
            flavor=_Untried,
            validate_serving_input=False,
            name=name,
            registered_model_name=registered_model_name,
            loader_module=logged.__name__,
            data_path=str(file),
            code_paths=[str(path) for path in sorted(code.iterdir())] or None,
            signature=signed,
            input_example=_example(example, parameters),
            streamable=streams(kind),
            pip_requirements=list(requirements if pip_requirements is None else pip_requirements),
            metadata={**(metadata or {}), "registry_serve": {"handler": spec.handler}},
            tags=None if tags is None else dict(tags),
        )
        return info


class _Untried:
    """MLflow's pyfunc flavor, but that MLflow does not load the model to try its example.

    It would build the handler once more, and download it, also where a signature says that this is not possible here.
    """

    @staticmethod
    def save_model(*, validate_serving_input: bool, **arguments: Any) -> None:
        mlflow.pyfunc.save_model(**arguments)


# --- the code --------------------------------------------------------------------------------------------------------


def _gather(code_paths: Sequence[str | Path], code: Path) -> None:
    """Copy all code into one folder, which its modules can then be imported from.

    Raises:
        ConfigurationError: a path is none, or a module would take the place of Python's or of this package.
    """
    code.mkdir()
    for given in reversed([Path(each).expanduser().resolve() for each in code_paths]):
        if given.is_file():
            shutil.copy(given, code)
        elif given.is_dir():
            inside = given.name if (given / "__init__.py").exists() else ""
            shutil.copytree(given, code / inside, ignore=_no_code, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        else:
            raise ConfigurationError(f"There is no folder or file {str(given)!r}, which code_paths names.")
    taken = names_in(code) & {*sys.stdlib_module_names, __name__.partition(".")[0]}
    if taken:
        raise ConfigurationError(
            f"code_paths brings a module {min(taken)!r}, which would take another's place: rename it, or name a folder "
            f"with the handler's own code only."
        )


def _no_code(folder: str, names: list[str]) -> set[str]:
    """Say what does not go along."""
    here, store = Path(folder).resolve(), _store()
    return _NO_CODE(folder, names) | {name for name in names if here / name in store}


def _store() -> set[Path]:
    """Return where MLflow keeps models and runs now, as far as that is on this machine."""
    uris = [mlflow.get_tracking_uri(), mlflow.get_registry_uri()]
    databases = [file.resolve() for file in map(database_file, uris) if file is not None]
    besides = [file.with_name(f"{file.name}-{kind}") for file in databases for kind in ("journal", "shm", "wal")]
    folders = [Path(url2pathname(urlsplit(uri).path)).resolve() for uri in uris if uri.startswith("file:")]
    return {*databases, *besides, *folders}


@contextmanager
def _imported_from(code: Path) -> Iterator[None]:
    """Import modules from a folder, also those that were imported from elsewhere, and leave none of them behind."""
    names = names_in(code)
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
    sys.path.insert(0, str(code))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(code))
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(kept)


def _modules(spec: HandlerSpec, code: Path) -> list[str]:
    """Return the modules of the handler and of its downloader.

    Raises:
        HandlerInvalid: there is no such module.
    """
    modules = []
    for named in (spec.handler, spec.download.downloader):
        if not isinstance(named, str):
            continue
        module, dot, _ = named.rpartition(".")
        if dot:
            modules.append(module)
        elif named is spec.handler:
            modules += [each.module for each in entry_points(group=ENTRY_POINTS, name=named)]
    for module in modules:
        elsewhere = module.partition(".")[0] not in names_in(code) and is_somewhere(module)
        if not elsewhere and not is_inside(module, code):
            raise HandlerInvalid(spec.name, f"there is no module {module!r}: name the folder it is in in code_paths")
    return modules


def _dotted(given: Any) -> Any:
    """Return the dotted path of a class or a function; names stay what they are."""
    if given is None or isinstance(given, str):
        return given
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", "")
    named = f"{module}.{name}"
    if module in (None, "__main__") or not name.isidentifier():
        raise HandlerInvalid(named, "a registered version imports it by its name: write it at the top of a module")
    return named


def _written(spec: HandlerSpec) -> str:
    try:
        return logged.written(spec)
    except (TypeError, ValueError) as error:
        raise HandlerInvalid(spec.name, f"its parameters are stored as JSON: {error}") from None


def _kind(spec: HandlerSpec) -> type:
    kind = handler_class(spec)
    if takes_body(kind, spec.name):
        raise HandlerInvalid(spec.name, "predict(self, **inputs) knows no rows: write predict(self, model_requests)")
    return kind


# --- the signature ---------------------------------------------------------------------------------------------------


def _checked(signature: ModelSignature, parameters: dict[str, Any]) -> ModelSignature:
    names = signature.inputs.input_names() if signature.inputs is not None else []
    if names != [logged.INPUT]:
        raise ConfigurationError(f"The signature of a handler has one input column, {logged.INPUT!r}, not {names}.")
    if not parameters:
        return signature
    if signature.params is not None:
        raise ConfigurationError("The signature has params of its own: leave out parameters.")
    return ModelSignature(signature.inputs, signature.outputs, columns.params_of(parameters))


def _signature(spec: HandlerSpec, kind: type, example: list[Any] | None, parameters: dict[str, Any]) -> ModelSignature:
    """Tell the signature from an example, or else from annotations."""
    annotated = annotations_of(kind, takes_body=False)
    params = columns.params_of(parameters)
    if example is None:
        if annotated.input is None:
            raise ConfigurationError(
                f"The inputs of {spec.name!r} are not known: give input_example=[...] or signature=..., or annotate "
                f"its predict."
            )
        outputs = None if annotated.output is None else columns.outputs_of_annotation(annotated.output)
        return ModelSignature(columns.inputs_of_annotation(logged.INPUT, annotated.input), outputs, params)
    if not example:
        raise ConfigurationError("input_example needs at least one input.")
    inputs = columns.inputs_of_example(logged.INPUT, example)
    return ModelSignature(inputs, _outputs(spec, example, parameters), params)


def _outputs(spec: HandlerSpec, example: list[Any], parameters: dict[str, Any]) -> Schema:
    """Build the handler, and see what it answers its example with."""
    model = logged.logged(build(spec), spec.name)
    try:
        return columns.outputs_of_example(model.answer(example, parameters))
    except InvalidRequest as error:
        raise ConfigurationError(f"The handler refuses its input_example: {error}") from error
    except Exception as error:
        reason = f"it cannot answer its input_example: {type(error).__name__}: {error}"
        raise HandlerInvalid(spec.name, " ".join(reason.split())[:300]) from error
    finally:
        model.close()


def _example(example: list[Any] | None, parameters: Mapping[str, Any] | None) -> Any:
    if example is None:
        return None
    rows = [{logged.INPUT: each} for each in example]
    return (rows, dict(parameters)) if parameters else rows
