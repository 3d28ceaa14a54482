"""``registry-serve doctor``: whether this machine is fit to serve, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.filesize import decimal

from registry_serve.cli.lookup import RegistryUri, TrackingUri, registry_at, without_password
from registry_serve.cli.screen import AsJson, print_json, show_table
from registry_serve.downloaders import ArtifactCache
from registry_serve.errors import ConfigurationError
from registry_serve.launch import has_haproxy
from registry_serve.version import __version__

#: Where `run` puts HAProxy's pages while nobody else is there.
_USUAL_PORTS = {8404: "HAProxy's statistics", 9101: "HAProxy's metrics", 8500: "Ray's fallback proxy"}
_PACKAGES = ("ray", "mlflow-skinny", "mlflow", "torch", "transformers")
#: A registry that takes longer than that for a list keeps requests for new versions waiting.
_SLOW_S = 1.0
#: Ray takes in nothing more once its disk is so full.
_FULL = 0.95
_LITTLE_ROOM = 2 * 10**9


class State(str, Enum):
    """How a finding is to be taken."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        subject: what was looked at.
        state: ``problem`` where nothing can be served.
        found: what was seen.
        advice: what to do, empty where nothing needs to be done.
    """

    subject: str
    state: State
    found: str
    advice: str = ""


def doctor(
    port: Annotated[int, typer.Option(help="Port to be served on.", min=1, max=65535)] = 8000,
    tracking_uri: TrackingUri = None,
    registry_uri: RegistryUri = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: versions, ports, registry, disk, GPUs. Exit code 1 if there is a problem."""
    findings = [
        *_versions(),
        _haproxy(),
        *_ports(port),
        _registry(tracking_uri, registry_uri),
        _copies(),
        _ray_disk(),
        _gpus(),
        _cluster(),
    ]
    healthy = all(each.state is not State.PROBLEM for each in findings)
    if as_json:
        print_json({"ok": healthy, "findings": [asdict(each) for each in findings]})
    else:
        columns = ("what", "state", "found", "what to do")
        show_table(columns, [(each.subject, each.state.value, each.found, each.advice) for each in findings])
    if not healthy:
        raise typer.Exit(1)


def _versions() -> Iterator[Finding]:
    yield Finding("python", State.OK, platform.python_version())
    yield Finding("registry-serve", State.OK, __version__)
    for package in _PACKAGES:
        if (installed := _installed(package)) is not None:
            yield Finding(package, State.OK, installed)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _haproxy() -> Finding:
    if has_haproxy():
        return Finding("HAProxy", State.OK, "there")
    advice = "Ray's own proxy serves instead, many times slower. On Linux, HAProxy comes with: pip install 'ray[serve]'"
    return Finding("HAProxy", State.WARNING, "not there", advice)


# --- ports -----------------------------------------------------------------------------------------------------------


def _ports(port: int) -> Iterator[Finding]:
    if _is_free(port):
        yield Finding(f"port {port}", State.OK, "free")
    else:
        advice = "If that is no server of yours, serve on another one with --port."
        yield Finding(f"port {port}", State.WARNING, f"taken by {_holder(port)}", advice)
    for usual, what in _USUAL_PORTS.items():
        found = "free" if _is_free(usual) else f"taken by {_holder(usual)}; another one will do"
        yield Finding(f"port {usual}", State.OK, f"{found} ({what})")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except PermissionError:
            return True  # nobody holds it; who may is another question
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for each in psutil.net_connections("tcp"):
            listens = each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
            if listens and each.pid is not None:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return "a process of somebody else"


# --- the registry ----------------------------------------------------------------------------------------------------


def _registry(tracking_uri: str | None, registry_uri: str | None) -> Finding:
    try:
        with registry_at(tracking_uri, registry_uri) as registry:
            began = time.monotonic()
            count = len(registry.models())
            took_s = time.monotonic() - began
    except ConfigurationError as error:
        return Finding("registry", State.PROBLEM, "not reachable", str(error))
    uri = registry.address.registry_uri
    found = f"{without_password(uri)}, {count} models, {1000 * took_s:.0f} ms"
    if took_s > _SLOW_S:
        advice = "It is slow: versions that are asked for the first time will wait for it."
        return Finding("registry", State.WARNING, found, advice)
    if not uri.startswith(("http://", "https://")):
        advice = "For one machine this will do. For several, use the http address of an MLflow server."
        return Finding("registry", State.WARNING, found, advice)
    return Finding("registry", State.OK, found)


# --- disks -----------------------------------------------------------------------------------------------------------


def _copies() -> Finding:
    """Look at the room for downloaded models."""
    try:
        copies = ArtifactCache()
    except ConfigurationError as error:
        return Finding("model files", State.PROBLEM, "no budget", str(error))
    usage = copies.usage()
    free = shutil.disk_usage(_existing(copies.root)).free
    found = (
        f"{copies.root}: {usage.models} models, {decimal(usage.used_bytes)} of {decimal(usage.max_bytes)}, "
        f"{decimal(free)} free"
    )
    if not os.access(_existing(copies.root), os.W_OK):
        return Finding(
            "model files", State.PROBLEM, found, "Name a folder that can be written: REGISTRY_SERVE_ARTIFACTS."
        )
    if min(free, usage.max_bytes) < _LITTLE_ROOM:
        advice = "Large models will not fit. Free some space, or name a larger disk with REGISTRY_SERVE_ARTIFACTS."
        return Finding("model files", State.WARNING, found, advice)
    return Finding("model files", State.OK, found)


def _ray_disk() -> Finding:
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    disk = shutil.disk_usage(_existing(folder))
    full = 1 - disk.free / disk.total
    found = f"{folder}: {full:.0%} full, {decimal(disk.free)} free"
    if full < _FULL:
        return Finding("Ray's disk", State.OK, found)
    return Finding("Ray's disk", State.PROBLEM, found, "Free some space: Ray stores nothing on a disk that is so full.")


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


# --- GPUs and clusters -----------------------------------------------------------------------------------------------


def _gpus() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("GPUs", State.OK, "none")
    command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return Finding(
            "GPUs", State.WARNING, "nvidia-smi fails", "Run nvidia-smi to see why; the driver may be missing."
        )
    found = "; ".join(line.strip() for line in told.splitlines() if line.strip()) or "none"
    if found != "none" and (_installed("torch") or "").endswith("+cpu"):
        advice = "The installed torch is built for CPUs and will not use them. Install one for CUDA."
        return Finding("GPUs", State.WARNING, found, advice)
    return Finding("GPUs", State.OK, found)


def _cluster() -> Finding:
    heads = sorted(each.pid for each in psutil.process_iter() if _is_head(each))
    found = f"running here: {', '.join(f'process {pid}' for pid in heads)}" if heads else "none runs here"
    if address := os.environ.get("RAY_ADDRESS"):
        advice = "`run` starts a cluster of its own: unset RAY_ADDRESS for it, or use `serve deploy` on that one."
        return Finding("Ray clusters", State.WARNING, f"{found}; RAY_ADDRESS is {address}", advice)
    return Finding("Ray clusters", State.OK, found)


def _is_head(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.name() == "gcs_server"
    return False
