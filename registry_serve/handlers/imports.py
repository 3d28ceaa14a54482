"""What the code of a handler imports: modules of its own, which go along, and packages, which are required."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from registry_serve.errors import HandlerInvalid

_OURS = "registry-serve"


def requirements_of(reference: str, modules: Iterable[str], code: Path) -> list[str]:
    """Return the packages that modules need, each pinned to what is installed here, and this one.

    Args:
        reference: the handler, for an error.
        modules: dotted names, of modules in the folder or in installed packages.
        code: the folder with the modules that go along.

    Raises:
        HandlerInvalid: one imports a module that neither goes along nor is in an installed package.
    """
    distributions = packages_distributions()
    required = {_OURS}
    for name in _outside(modules, code):
        if name in distributions:
            required.update(distributions[name])
        elif is_somewhere(name):  # what is not is imported only where it is
            reason = f"its module {name!r} is in no installed package: name the folder that it is in under code_paths"
            raise HandlerInvalid(reference, reason)
    return sorted(map(_pinned, required))


def is_inside(module: str, code: Path) -> bool:
    """Say whether a folder has a module of this dotted name."""
    return _file_of(module, code) is not None


def is_somewhere(module: str) -> bool:
    """Say whether a module can be imported here."""
    try:
        return module in sys.modules or find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def names_in(code: Path) -> set[str]:
    """Return the first names of the modules in a folder."""
    return {path.relative_to(code).parts[0].removesuffix(".py") for path in code.rglob("*.py")}


def _outside(modules: Iterable[str], code: Path) -> set[str]:
    """Return the first names of all modules outside the folder, of those given and of what they import."""
    roots = tuple(modules)
    left, seen, outside = list(roots), set[str](), set[str]()
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        file = _file_of(module, code)
        if file is None:
            outside.add(module.partition(".")[0])
            # Of an installed package only the handler's own modules: it may need more than all of the package does.
            own = any(f"{module}.".startswith(f"{root}.") for root in roots)
            file = _installed_file(module) if own else None
        if file is not None:
            left += _imported(module, file)
    return outside - sys.stdlib_module_names - names_in(code)


def _imported(module: str, file: Path) -> Iterator[str]:
    """Yield what a file imports, by absolute names: of ``from a import b`` both ``a`` and ``a.b``, and all packages."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{each.name}" for each in node.names)]
        for name in filter(None, names):
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _file_of(module: str, code: Path) -> Path | None:
    path = code.joinpath(*module.split("."))
    found = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in found if file.is_file()), None)


def _installed_file(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # it names no module, but something in one
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.origin.endswith(".py") else None


def _pinned(name: str) -> str:
    # This package serves versions that were logged with another of its own.
    return name if name == _OURS else f"{name}=={version(name)}"
