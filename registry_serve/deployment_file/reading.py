"""YAML as deployment files need it: with the line of every key, no key twice, and text that stays as it is written.

PyYAML knows YAML 1.1, in which ``1e3`` is text, ``12:30`` is 750 and ``010`` is 8. Here the first is a number, as in
YAML 1.2, the second stays text, and the third is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import isclass
from pathlib import Path as FilePath
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel

from registry_serve.deployment_file.checking import Place, checked
from registry_serve.deployment_file.faults import Path, dotted
from registry_serve.deployment_file.fields import DeploymentFile
from registry_serve.errors import ConfigurationError, DeploymentFileInvalid

_TAG = "tag:yaml.org,2002:"
_UNDERSTOOD = {
    _TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge", "map", "seq")
}
_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
#: What the parser says -> what it means.
_PROBLEMS = {
    "\\t": "a tab where spaces are wanted",
    "another document": "a second document (---) begins",
    "end of stream": "a quote is not closed",
    "expected ','": "a bracket is not closed, or a comma is missing",
    "mapping values are not allowed": "a second colon, or wrong indentation; quote text that holds a colon",
    "undefined alias": "a * begins an alias, and there is no anchor & for it; quote text that begins with *",
}
#: Aliases of aliases grow without bound; a deployment file does not.
_MOST_VALUES = 100_000


def read(path: str | FilePath) -> DeploymentFile:
    """Read and check a deployment file.

    Raises:
        DeploymentFileInvalid: its first mistake, with the line.
        ConfigurationError: it cannot be read at all.
    """
    try:
        written = FilePath(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    document = _Document(str(path), written)
    return checked(document.value, document.places, document.refuse)


def _texts(kind: Any, at: Path) -> Iterator[Path]:
    """Yield the paths of all fields that hold text, with ``*`` for the items of a list."""
    if kind is str:
        yield at
    elif isclass(kind) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from _texts(field.annotation, (*at, name))
    elif get_origin(kind) is not dict:
        inside = (*at, "*") if get_origin(kind) is list else at
        for part in get_args(kind):
            yield from _texts(part, inside)


_TEXTS = frozenset(_texts(DeploymentFile, ()))


class _Document:
    """What a file says, and where: ``places`` has line and column of each key and each item of a list."""

    def __init__(self, file: str, written: bytes) -> None:
        self.file = file
        self.places: dict[Path, Place] = {}
        self._looked_at: set[int] = set()
        try:
            text = written.decode("utf-8-sig")
            self._loader = yaml.SafeLoader(text)
            root = self._loader.get_single_node()
            if root is None:
                raise self._invalid(1, "the file is empty")
            self.places[()] = _place(root)
            self.value = self._value(root, ())
        except UnicodeDecodeError as error:
            raise self._invalid(written.count(b"\n", 0, error.start) + 1, "the file is not UTF-8 text") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise self._invalid(line, "the file holds a control character") from None
        except yaml.MarkedYAMLError as error:
            raise self._not_yaml(error) from None
        except RecursionError:
            raise self._invalid(1, "the file is nested too deeply, or an alias (*) contains itself") from None

    def refuse(self, path: Path, reason: str) -> DeploymentFileInvalid:
        """Return the error at the key, or at what it is missing in."""
        while path not in self.places:
            path = path[:-1]
        return self._invalid(self.places[path][0], reason)

    def _invalid(self, line: int, reason: str) -> DeploymentFileInvalid:
        return DeploymentFileInvalid(self.file, line, reason)

    def _not_yaml(self, error: yaml.MarkedYAMLError) -> DeploymentFileInvalid:
        problem = error.problem or "it cannot be read"
        at_the_end = "end" in problem or "<block" in problem
        mark = (at_the_end and error.context_mark) or error.problem_mark or error.context_mark
        # The parser quotes what it has found, which may be a secret.
        said = re.sub(r"'[^'\s]{3,}'", "...", problem)
        said = next((words for part, words in _PROBLEMS.items() if part in problem), said)
        return self._invalid(mark.line + 1 if mark else 1, f"the file is not valid YAML: {said}")

    def _value(self, node: yaml.Node, path: Path) -> Any:
        if len(self.places) > _MOST_VALUES:
            raise self._invalid(_place(node)[0], f"the file holds more than {_MOST_VALUES} values")
        if node.tag not in _UNDERSTOOD:
            reason = f"{dotted(path) or 'the file'} has a tag (!) that is not understood; quote text that begins with !"
            raise self._invalid(_place(node)[0], reason)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(each, (*path, index)) for index, each in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def _item(self, node: yaml.Node, path: Path) -> Any:
        self.places[path] = _place(node)
        return self._value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if id(node) not in self._looked_at:  # merging (<<) puts the merged keys before the node's own
            self._looked_at.add(id(node))
            self._no_key_twice(node, path)
            self._loader.flatten_mapping(node)
        mapping = {}
        for key, value in node.value:
            name = self._name(key, path)
            self.places[(*path, name)] = _place(key)
            mapping[name] = self._value(value, (*path, name))
        return mapping

    def _no_key_twice(self, node: yaml.MappingNode, path: Path) -> None:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = self._name(key, path), _place(key)[0]
            if name in seen:
                again = f"{dotted((*path, name))} is there twice, first in line {seen[name]}; keep one"
                raise self._invalid(line, again)
            seen[name] = line

    def _name(self, key: yaml.Node, path: Path) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise self._invalid(_place(key)[0], f"a key of {dotted(path) or 'the file'} is no text")
        return str(key.value)

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if tuple("*" if isinstance(step, int) else step for step in path) in _TEXTS:
            return None if kind == "null" and path[0] != "env_variables" else text
        if kind == "str":
            return float(text) if node.style is None and _EXPONENT.fullmatch(text) else text
        if kind in ("timestamp", "value", "merge") or (kind in ("int", "float") and ":" in text):
            return text
        if kind == "int" and _OCTAL.fullmatch(text):
            reason = f"{dotted(path)} begins with a 0, which YAML reads as octal; leave the 0 out, or quote it as text"
            raise self._invalid(_place(node)[0], reason)
        try:
            return self._loader.construct_object(node)
        except (ValueError, LookupError):
            raise self._invalid(_place(node)[0], f"{dotted(path)} is not what its tag says, or too long") from None


def _place(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1
