"""The code that a deployment file's integrations name, gathered into one archive for the replicas."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

from registry_serve.deployment_file import DeploymentFile, GitRepo
from registry_serve.errors import ConfigurationError
from registry_serve.rollout.state import state_folder

Tell = Callable[[str], None]

_NEVER = (".git", "__pycache__", ".venv", ".ipynb_checkpoints", "*.pyc")
_URL = re.compile(r"^(?:[a-z+]+://|[\w.-]+@[\w.-]+:)")
#: Who signs in with an address, and whatever else git may repeat of it.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
#: An archive with one folder only would lose it when Ray unpacks it.
_MARK = ".registry-serve"
#: Where Ray has unpacked the archive when it calls pip.
_UNPACKED = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
_GIT_TIMEOUT_S = 600
#: Options of pip that name a file or a folder; each is a line of a requirements file as well.
_WITH_PATH = ("-r", "--requirement", "-c", "--constraint", "-f", "--find-links")
_WITH_VALUE = (
    *("-i", "--index-url", "--pypi-url", "--extra-index-url", "--trusted-host", "--proxy", "--cert", "--client-cert"),
    *("--no-binary", "--only-binary", "--platform", "--python-version", "--implementation", "--abi"),
    *("-C", "--config-settings", "--config-setting", "--global-option", "--upgrade-strategy", "--use-feature"),
    *("--use-deprecated", "--timeout", "--default-timeout", "--retries", "--exists-action", "--cache-dir", "--log"),
    *("--progress-bar", "--keyring-provider", "--root-user-action", "--report", "--src", "-t", "--target"),
    *("--root", "--prefix", "--python", "--group"),
)
#: How long an archive is kept that is in no record: of what is being deployed, or may have to be brought back.
_KEPT_S = 3600
#: The same content has the same bytes, hence the same name.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Code:
    """What the replicas get.

    Attributes:
        archive: a zip file, named after its content; None where no integration brings code.
        paths: its folders that Python imports from.
        packages: requirements, as pip takes them in a file.
        options: of ``pip install``.
    """

    archive: str | None = None
    paths: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())


def gather(file: DeploymentFile, folder: Path, tell: Tell) -> Code:
    """Fetch the code of a deployment file.

    Args:
        file: whose integrations are looked at.
        folder: that its paths are relative to.
        tell: hears what is fetched.

    Raises:
        ConfigurationError: a repository cannot be fetched, or a folder is not there.
    """
    packages = [each for some in file.integrations if some.integration_type == "pip_packages" for each in some.packages]
    options: list[str] = []
    repos = [each for each in file.integrations if isinstance(each, GitRepo)]
    if not repos:
        return Code(packages=tuple(packages))
    names = [_name(each, folder) for each in repos]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"Two git_repo integrations have the same name: {', '.join(names)}. Give one a path.")
    with tempfile.TemporaryDirectory(prefix="code-") as staging:
        for repo, name in zip(repos, names, strict=True):
            _fetch(repo, folder, Path(staging, name), tell)
            wanted, meant = _pip_install(repo, name)
            packages += wanted
            options += meant
        archive = _archive(Path(staging))
    return Code(str(archive), (".", *names), tuple(packages), tuple(options))


def prune(used: set[str]) -> None:
    """Remove the archives that no deployment uses any more, but none that a command may be about to use."""
    for each in state_folder("code").glob("*.zip"):
        with suppress(FileNotFoundError):
            if str(each) not in used and time.time() - each.stat().st_mtime > _KEPT_S:
                each.unlink()


def _name(repo: GitRepo, folder: Path) -> str:
    """Return the name that a repository is imported under.

    Raises:
        ConfigurationError: it has none.
    """
    if repo.path is not None:
        return PurePosixPath(repo.path).name
    local = _local(repo, folder)
    written = local.name if local is not None else re.split(r"[/:]", repo.git_repo.rstrip("/"))[-1]
    name = written.removesuffix(".git")
    if name in ("", ".", ".."):
        raise ConfigurationError(f"git_repo {_shown(repo.git_repo)!r} has no name to import it under. Give it a path.")
    return name


def _local(repo: GitRepo, folder: Path) -> Path | None:
    try:
        path = folder / Path(repo.git_repo.removeprefix("file://")).expanduser()
    except RuntimeError:
        raise ConfigurationError(f"git_repo {repo.git_repo!r} is in nobody's home folder: no such user.") from None
    return path.resolve() if path.is_dir() else None


def _fetch(repo: GitRepo, folder: Path, target: Path, tell: Tell) -> None:
    local = _local(repo, folder)
    if local is not None and not (repo.git_branch or repo.git_commit):
        _copy(local, target)
        return
    source = str(local) if local is not None else _address(repo, folder)
    tell(f"Fetching {_shown(source)}")
    if repo.git_commit:
        _git(["init", "--quiet", str(target)], source)
        _git(["-C", str(target), "fetch", "--quiet", "--depth", "1", "--", source, repo.git_commit], source)
        _git(["-C", str(target), "checkout", "--quiet", "FETCH_HEAD"], source)
    else:
        branch = ["--branch", repo.git_branch] if repo.git_branch else []
        address = source if local is None else local.as_uri()  # a path is not cloned shallowly
        _git(["clone", "--quiet", "--depth", "1", *branch, "--", address, str(target)], source)
    shutil.rmtree(target / ".git")


def _copy(local: Path, target: Path) -> None:
    try:
        shutil.copytree(local, target, ignore=_ignored(local), ignore_dangling_symlinks=True)
    except OSError as error:
        failed = error.args[0] if isinstance(error, shutil.Error) else None
        source, reason = (failed[0][0], failed[0][2]) if isinstance(failed, list) else (local, error.strerror)
        raise ConfigurationError(f"{source} cannot be copied for the replicas: {reason}.") from None


def _address(repo: GitRepo, folder: Path) -> str:
    if _URL.match(repo.git_repo):
        return repo.git_repo
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo.git_repo) and not repo.git_repo.startswith("."):
        way = f"git@{repo.host}:" if repo.ssh_clone else f"https://{repo.host}/"
        return f"{way}{repo.git_repo.removesuffix('.git')}.git"
    raise ConfigurationError(
        f"git_repo {repo.git_repo!r} is no folder below {folder}, no org/repo and no URL. Paths are relative to the "
        "deployment file."
    )


def _git(words: Sequence[str], source: str) -> None:
    """Call git, which must not ask for anything.

    Raises:
        ConfigurationError: it failed; the message holds no credentials.
    """
    environment = {
        **os.environ,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
        "LC_ALL": "C",
    }
    try:
        subprocess.run(  # noqa: S603 - no shell, and nothing that could be taken for an option
            ["git", *words],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_GIT_TIMEOUT_S,
            env=environment,
        )
    except FileNotFoundError:
        raise ConfigurationError("git is not installed, and a git_repo integration needs it.") from None
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"git does not get {_shown(source)} within {_GIT_TIMEOUT_S} s.") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith(("fatal:", "error:"))]
        said = _CREDENTIALS.sub("", (lines or error.stderr.splitlines() or ["nothing"])[0])
        raise ConfigurationError(f"git cannot get {_shown(source)}: {said}") from None


def _shown(source: str) -> str:
    return _CREDENTIALS.sub("", source).split("?")[0]


def _ignored(root: Path) -> Callable[[str, list[str]], set[str]]:
    """Say what is not copied: what no replica needs, and what the plain lines of ``.gitignore`` name."""
    written = root / ".gitignore"
    lines = written.read_text(errors="replace").splitlines() if written.is_file() else []
    patterns = [line.strip().strip("/") for line in lines]
    plain = [each for each in patterns if each and "/" not in each and not each.startswith(("#", "!"))]

    def ignore(_: str, names: list[str]) -> set[str]:
        return {name for name in names if any(fnmatch.fnmatch(name, each) for each in (*_NEVER, *plain))}

    return ignore


def _pip_install(repo: GitRepo, name: str) -> tuple[list[str], list[str]]:
    """Return requirements and options for what ``pip install`` would be told in the repository."""
    requirements, options = [], []
    words = iter(_words(repo.pip_install or ""))
    for word in words:
        if word in _WITH_PATH:
            requirements.append(f"{word} {_unpacked(name, next(words, ''))}")
        elif word in ("-e", "--editable"):
            continue  # what is installed is a copy in any case
        elif word in _WITH_VALUE:
            options += [word, *islice(words, 1)]
        elif word.startswith("-"):
            options.append(word)
        elif word.startswith("."):
            requirements.append(_unpacked(name, word))
        else:
            requirements.append(word)
    return requirements, options


def _words(pip_install: str) -> Iterator[str]:
    """Yield the words, also those that pip takes in one: ``--requirement=FILE``, ``-rFILE``, ``-e.``."""
    for word in shlex.split(pip_install):
        option, joined, value = word.partition("=")
        if joined and option in (*_WITH_PATH, "--editable"):
            yield from (option, value)
        elif word[:2] in ("-r", "-c", "-f", "-e") and len(word) > 2:
            yield from (word[:2], word[2:])
        else:
            yield word


def _unpacked(name: str, path: str) -> str:
    """Return where a path of a repository is for a replica; addresses and absolute paths stay what they are."""
    return path if _URL.match(path) else str(PurePosixPath(_UNPACKED, name, path))


def _archive(staging: Path) -> Path:
    """Pack a folder into a file named after its content."""
    folder = state_folder("code")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as made:
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(_MARK, _EPOCH), "")
            for path in _files(staging):
                entry = zipfile.ZipInfo(path.relative_to(staging).as_posix(), _EPOCH)
                entry.external_attr = (path.stat().st_mode & 0o777) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
        made.flush()
        made.seek(0)
    packed = Path(made.name)
    with packed.open("rb") as content:
        digest = hashlib.sha256(content.read()).hexdigest()[:32]
    return packed.replace(folder / f"{digest}.zip")


def _files(folder: Path) -> Iterator[Path]:
    return (each for each in sorted(folder.rglob("*")) if each.is_file())
