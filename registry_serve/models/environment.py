"""A version's requirements and Python version, held against what is installed.

MLflow writes ``requirements.txt`` beside each model and the Python version into its ``MLmodel`` file. MLflow itself is
held to be right from the version named there on, since it reads what older ones wrote.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

_MLFLOW = ("mlflow", "mlflow-skinny", "mlflow-tracing")
_OURSELVES = "registry-serve"
_OPTION_WITH_FILE = re.compile(r"(-r|--requirement|-c|--constraint)[ =]*(\S+)")


@dataclass(frozen=True)
class Difference:
    """A requirement that what is installed does not meet.

    Attributes:
        requirement: as ``six==1.16.0``, or ``python==3.10.*``.
        installed: the installed version, or None.
    """

    requirement: str
    installed: str | None

    def __str__(self) -> str:
        """Return both, in words."""
        return f"{self.requirement} ({f'{self.installed} is' if self.installed else 'not'} installed)"


@dataclass(frozen=True)
class Environment:
    """What was found when a version's requirements were compared.

    Attributes:
        python: how the minor version of Python differs, if it does.
        packages: the requirements that are not met.
        not_checked: lines that name no package and version: options, addresses, paths; shortened, since they may hold
            passwords.
        requirements: what pip has to be given to make the version's environment. MLflow is not among them: the server's
            own loads the model.
    """

    python: Difference | None = None
    packages: tuple[Difference, ...] = ()
    not_checked: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All differences, that of Python first."""
        return self.packages if self.python is None else (self.python, *self.packages)

    def described(self) -> dict[str, Any]:
        """Return the findings, ready for JSON."""
        return {"differences": [asdict(each) for each in self.differences], "not_checked": list(self.not_checked)}


def compared(directory: Path) -> Environment:
    """Compare what a model was logged with to what is installed in this process.

    Args:
        directory: a local copy of its artifacts. Without a ``requirements.txt``, packages are not compared.
    """
    file = directory / "requirements.txt"
    lines = list(_lines(file.read_text(encoding="utf-8", errors="replace"))) if file.is_file() else []
    packages: dict[Difference, None] = {}
    not_checked = []
    for line in lines:
        requirement = _parsed(line)
        if requirement is None or requirement.url is not None:
            not_checked.append(_shortened(line, requirement))
        else:
            packages |= dict.fromkeys(_unmet(requirement))
    to_install = [each for line in lines if (each := _for_pip(line, directory)) is not None]
    return Environment(_python(directory), tuple(packages), tuple(not_checked), (*to_install, *_our_own()))


def _lines(text: str) -> Iterator[str]:
    """Return the lines of a requirements file without comments, continuations and options of single packages."""
    for line in text.replace("\\\n", " ").splitlines():
        content = re.sub(r"(^|\s)#.*$", "", line).strip()
        if content:
            yield re.sub(r"\s+--\S.*$", "", content) if not content.startswith("-") else content


def _parsed(line: str) -> Requirement | None:
    if line.endswith((".whl", ".tar.gz", ".zip")) and "@" not in line:
        return None  # a file of the model's; it would pass for a package's name
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def _shortened(line: str, requirement: Requirement | None) -> str:
    if line.startswith("-"):
        return re.split(r"[\s=]", line, maxsplit=1)[0]
    address = urlsplit(line if requirement is None else requirement.url or "")
    place = f"{address.scheme}://{address.hostname}/..." if address.scheme else PurePosixPath(line).name
    return place if requirement is None else f"{requirement.name} @ {place}"


# --- what is installed -----------------------------------------------------------------------------------------------


def _unmet(requirement: Requirement, extra: str = "", seen: frozenset[str] = frozenset()) -> Iterator[Difference]:
    """Yield what keeps a requirement from being met: itself, or what its extras ask for."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return
    requirement = Requirement(str(requirement).split(";")[0])
    installed = _installed(requirement.name)
    if installed is None or not _meets(installed, requirement):
        yield Difference(str(requirement), installed)
        return
    for wanted in requirement.extras - seen:
        for line in importlib.metadata.requires(requirement.name) or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                yield from _unmet(needed, wanted, seen | requirement.extras)


def _installed(name: str) -> str | None:
    for each in _MLFLOW[:2] if canonicalize_name(name) == "mlflow" else (name,):
        try:
            return importlib.metadata.version(each)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _meets(installed: str, requirement: Requirement) -> bool:
    try:
        version = Version(installed)
    except InvalidVersion:
        return not requirement.specifier
    wanted = _without_labels(requirement.specifier)
    if canonicalize_name(requirement.name) in _MLFLOW:
        wanted = SpecifierSet(",".join(_or_newer(each) for each in wanted))
    return wanted.contains(version.public, prereleases=True)


def _without_labels(specifiers: SpecifierSet) -> SpecifierSet:
    """Drop local labels: 2.13.0+cpu is another build of 2.13.0, and a package index rarely has it."""
    return SpecifierSet(",".join(str(each).split("+")[0] for each in specifiers))


def _or_newer(specifier: Specifier) -> str:
    pinned = specifier.operator in ("==", "===", "~=")
    return f">={specifier.version.removesuffix('.*')}" if pinned else str(specifier)


def _python(directory: Path) -> Difference | None:
    document = yaml.safe_load((directory / "MLmodel").read_bytes())
    logged = str(document["flavors"]["python_function"].get("python_version") or "")
    minor = re.match(r"3\.\d+", logged)
    if minor is None or platform.python_version().startswith(f"{minor[0]}."):
        return None
    return Difference(f"python=={minor[0]}.*", platform.python_version())


# --- what pip is given -----------------------------------------------------------------------------------------------


def _for_pip(line: str, directory: Path) -> str | None:
    """Return a line as pip needs it elsewhere than in the model's directory; None for MLflow."""
    requirement = _parsed(line)
    if requirement is not None:
        if canonicalize_name(requirement.name) in _MLFLOW:
            return None
        requirement.specifier = _without_labels(requirement.specifier)
        return str(requirement)
    if option := _OPTION_WITH_FILE.fullmatch(line):
        return f"{option[1]} {directory.absolute() / option[2]}"
    return str(directory.absolute() / line) if (directory / line).exists() else line


def _our_own() -> Iterable[str]:
    """Return what this package needs, so that pip keeps to it or says what clashes."""
    try:
        needed = map(Requirement, importlib.metadata.requires(_OURSELVES) or ())
    except importlib.metadata.PackageNotFoundError:
        return []  # it travels with the application
    return [str(each) for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
