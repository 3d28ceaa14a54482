"""Python modules that model versions bring along, and why two versions must not bring different ones.

MLflow puts a version's ``code_paths`` at the front of ``sys.path`` and leaves them there, and Python keeps every module
it imported. A second version with a module of the same name would silently run the first one's code. So each module
name belongs to the first version that brings it: another version may share it only if its whole code tree is the same
to the byte, and is refused otherwise. So is one that would take the place of a module of Python's own library.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CodeClash(Exception):
    """A version brings a module that this process already has from elsewhere. ``args``: the module's name."""


_lock = threading.Lock()
_owners: dict[str, str] = {}
_homes: set[Path] = set()


@contextmanager
def claimed(code: Path) -> Iterator[None]:
    """Load a version inside this: the names of all modules in its directory are then its own.

    If loading fails, the names that were not imported meanwhile are free again.

    Raises:
        CodeClash: one of them was brought by a version with other code, or imported from elsewhere.
    """
    names = _claim(code)
    try:
        yield
    except BaseException:
        with _lock:
            for name in names - sys.modules.keys():
                _owners.pop(name, None)
        raise


def _claim(code: Path) -> set[str]:
    """Reserve all names, and return those that were free before."""
    digest = _digest(code)
    modules = dict(_modules(code))
    with _lock:
        for name, path in modules.items():
            owner = _owners.get(name)
            if owner is not None and owner != digest:
                raise CodeClash(name)
            if owner is None and name in sys.modules and not _is_from(name, path):
                raise CodeClash(name)
            if name.partition(".")[0] in sys.stdlib_module_names:
                raise CodeClash(name)
        free = modules.keys() - _owners.keys()
        if free:
            _homes.add(code)
        _owners.update(dict.fromkeys(modules, digest))
    return free


def is_home(directory: Path) -> bool:
    """Say whether modules of this process may still be read from a model's directory, also when it is unloaded.

    Another version with the same code shares the modules, and may import further ones from there later.
    """
    with _lock:
        return any(home.is_relative_to(directory) for home in _homes)


def forget_repeated_paths() -> None:
    """Remove what MLflow adds to ``sys.path`` again each time it loads the same version."""
    with _lock:
        sys.path[:] = list(dict.fromkeys(sys.path))


def _modules(code: Path) -> Iterator[tuple[str, Path]]:
    suffixes = importlib.machinery.all_suffixes()  # .py, .pyc and compiled extensions
    for path in sorted(code.rglob("*")):
        if "__pycache__" in path.parts or not path.name.endswith(tuple(suffixes)):
            continue
        *packages, file = path.relative_to(code).parts
        stem = file.split(".")[0]
        name = ".".join(packages if stem == "__init__" else [*packages, stem])
        if name:
            yield name, path


def _is_from(name: str, path: Path) -> bool:
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and Path(file).resolve() == path.resolve()


def _digest(code: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(code.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(code).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
