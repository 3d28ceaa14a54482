"""The environment of a replica: what a deployment file says under ``env_variables`` and ``command``."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator

from registry_serve.deployment_file import DeploymentFile

_SPACE = r"(?:[ \t]|\\\n)"
#: What no shell has to work out, but for variables: no commands in it or after it.
_ASSIGNMENT = r"""[A-Za-z_]\w*=(?:"(?:[^"\\`$]|\\.|\$(?!\())*"|'[^']*'|\\.|[^\s"'`\\;&|<>()])*"""
_EXPORT = re.compile(
    rf"^[ \t]*export(?P<assigned>(?:{_SPACE}+{_ASSIGNMENT})+){_SPACE}*(?:;[ \t]*)?(?:(?<=[\s;])#[^\n]*)?$",
    re.MULTILINE | re.DOTALL,
)
_REFERENCE = re.compile(r"\$(\w+)")
#: Where MosaicML puts repositories; here they are in the replica's working directory.
_MOSAICML_CODE = "/code/"


def variables(file: DeploymentFile) -> dict[str, str]:
    """Return what to set for the replicas: ``env_variables``, and over them the ``export`` lines of ``command``.

    ``${NAME}`` in a value is replaced by Ray, on the node of the replica.
    """
    exported = dict(_exports(file.command))
    path = exported.pop("PYTHONPATH", None)
    if path is not None:
        elsewhere = [each for each in path.split(":") if not each.startswith(_MOSAICML_CODE)]
        exported |= {"PYTHONPATH": ":".join(elsewhere)} if elsewhere not in ([], ["${PYTHONPATH}"]) else {}
    return {each.key: each.value for each in file.env_variables} | exported


def code_paths(file: DeploymentFile) -> list[str]:
    """Return the folders of the working directory that the file's command puts on ``PYTHONPATH``."""
    exported = dict(_exports(file.command))
    named = exported.get("PYTHONPATH", "").split(":")
    return [each.removeprefix(_MOSAICML_CODE) for each in named if each.startswith(_MOSAICML_CODE)]


def only_exports(command: str | None) -> bool:
    """Say whether nothing of a command is left when its ``export`` lines are honoured."""
    left = _EXPORT.sub("", command or "").splitlines()
    return not [line for line in left if line.strip() and not line.lstrip().startswith("#")]


def executable(command: str) -> str:
    """Return what starts the Python of a replica when a shell is to run a command before."""
    script = f'{command.rstrip()}\nexec "$0" "$@"'
    return f"sh -ec {shlex.quote(script)} {shlex.quote(sys.executable)}"


def _exports(command: str | None) -> Iterator[tuple[str, str]]:
    for line in _EXPORT.finditer(command or ""):
        for assigned in shlex.split(line["assigned"].replace("\\\n", "")):
            name, _, value = assigned.partition("=")
            yield name, _REFERENCE.sub(r"${\1}", value)
