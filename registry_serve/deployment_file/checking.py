"""A document becomes a deployment file, or the first of its mistakes becomes an error."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from registry_serve.deployment_file.faults import Fault, Path, at, found, nearest
from registry_serve.deployment_file.fields import (
    DOTTED_PATH,
    VARIABLE,
    Batching,
    CheckpointPath,
    Compute,
    CustomModel,
    DefaultModel,
    DeploymentFile,
    EnvVariable,
    GitRepo,
    Model,
    OtherIntegration,
    PipPackages,
)
from registry_serve.deployment_file.legacy import modern
from registry_serve.deployment_file.rules import broken_rules, missing
from registry_serve.errors import ConfigurationError

#: Where a key stands in its file: line and column, from 1.
Place = tuple[int, int]

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "string_type": "text",
}
_PATTERNS = {
    DOTTED_PATH: "a dotted path such as package.module.Name, or a registered name",
    VARIABLE: "the name of a variable: letters, digits and _",
}
_SECTIONS: dict[str, type[BaseModel]] = {
    "compute": Compute,
    "batching": Batching,
    "model": Model,
    "default_model": DefaultModel,
    "checkpoint_path": CheckpointPath,
    "custom_model": CustomModel,
    "env_variables": EnvVariable,
    "git_repo": GitRepo,
    "pip_packages": PipPackages,
}
_INTEGRATIONS = ("git_repo", "pip_packages", *get_args(OtherIntegration.model_fields["integration_type"].annotation))


def parse(document: Mapping[str, Any], source: str = "the deployment") -> DeploymentFile:
    """Check a document that is no file's, such as one that was stored.

    Args:
        document: as YAML reads it. What ``model_dump(mode="json")`` of a deployment file gave comes back equal.
        source: what errors call it.

    Raises:
        ConfigurationError: a mistake; the sentence names the key, what was expected and what was found.
    """

    def refuse(path: Path, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{source}: {reason}.")

    return checked(document, {}, refuse)


def checked(
    document: Any, places: Mapping[Path, Place], refuse: Callable[[Path, str], ConfigurationError]
) -> DeploymentFile:
    """Return the deployment file, or raise what ``refuse`` makes of its first mistake.

    What stands in the file comes first, in the file's order, then what is missing in it.
    """
    if not isinstance(document, Mapping):
        raise refuse((), f"the file must be a mapping of keys{found((), document)}")
    moved, origins, faults = modern(document)
    faults.extend([*broken_rules(moved), *_shell_words(moved), *_folders(moved)])
    file = None
    try:
        file = DeploymentFile.model_validate(moved)
    except ValidationError as error:
        faults.extend(_fault(each, moved) for each in error.errors(include_url=False))
    if file is not None and not faults:
        return file

    def order(fault: Fault) -> tuple[bool, Place]:
        path = origins.get(fault.path, fault.path)
        return at(document, path) is None and path not in places, places.get(path, (0, 0))

    first = min(faults, key=order)
    path = origins.get(first.path, first.path)
    raise refuse(path, first.sentence(path)) from None


def _shell_words(document: Mapping[str, Any]) -> Iterator[Fault]:
    command = document.get("command")
    if isinstance(command, str) and _has_an_open_export(command.splitlines()):
        yield Fault(("command",), "holds an export whose quote is not closed")
    for path, repository in _repositories(document):
        words = repository.get("pip_install")
        if isinstance(words, str) and not _is_whole(words):
            yield Fault((*path, "pip_install"), "must not end in a quote, or with a backslash")


def _folders(document: Mapping[str, Any]) -> Iterator[Fault]:
    for path, repository in _repositories(document):
        folder = repository.get("path")
        if isinstance(folder, str) and folder and PurePosixPath(folder).name in ("", ".."):
            where = (*path, "path")
            yield Fault(where, f"must end with the name of a folder{found(where, folder)}")


def _repositories(document: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    integrations = document.get("integrations")
    for index, each in enumerate(integrations if isinstance(integrations, list) else []):
        if isinstance(each, Mapping) and each.get("integration_type") == "git_repo":
            yield ("integrations", index), each


def _has_an_open_export(lines: list[str]) -> bool:
    """Look at each export, and at the lines after it: a quote may go over several."""
    exports = [index for index, line in enumerate(lines) if line.split()[:1] == ["export"]]
    ends = range(1, len(lines) + 1)
    return any(
        not any(_is_whole("\n".join([*lines[index:end], ""])) for end in ends if end > index) for index in exports
    )


def _is_whole(words: str) -> bool:
    try:
        shlex.split(words, comments=True)
    except ValueError:
        return False
    return True


def _fault(error: ErrorDetails, document: Mapping[str, Any]) -> Fault:
    """Say what pydantic found in our words, and without the value where that is secret."""
    path, context = _path(error["loc"]), error.get("ctx", {})
    kind, instead = error["type"], found(path, at(document, path))
    if kind == "missing":
        return missing(str(path[0]), document) if len(path) == 1 else Fault(path, "is missing")
    if kind == "extra_forbidden":
        return _unknown_key(path, error["loc"])
    if kind == "union_tag_not_found":
        return Fault((*path, "integration_type"), "is missing")
    if kind == "union_tag_invalid":
        path = (*path, "integration_type")
        return Fault(path, f"must be one of {', '.join(_INTEGRATIONS)}{found(path, at(document, path))}")
    if kind == "string_too_short":
        return Fault(path, "must hold a letter or a digit" if at(document, path) else "must not be empty")
    if kind == "greater_than_equal":
        return Fault(path, f"must be at least {context['ge']:g}{instead}")
    if kind == "greater_than":
        return Fault(path, f"must be greater than {context['gt']:g}{instead}")
    if kind == "string_pattern_mismatch":
        return Fault(path, f"must be {_PATTERNS[context['pattern']]}{instead}")
    return Fault(path, f"must be {_EXPECTED.get(kind, 'valid text')}{instead}")


def _path(location: Path) -> Path:
    """Drop the integration's type, which pydantic puts into the path though no key is named so."""
    return (*location[:2], *location[3:]) if location[0] == "integrations" else location


def _unknown_key(path: Path, location: Path) -> Fault:
    section = next(_SECTIONS[step] for step in reversed(location[:-1]) if step in _SECTIONS)
    known, key = list(section.model_fields), str(path[-1])
    if ":" in key:
        return Fault(path, "needs a space after its colon")
    return Fault(path, f"is unknown{nearest(key, known)} Known keys: {', '.join(known)}")
