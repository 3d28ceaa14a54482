"""``registry-serve config``: a file for Ray's ``serve deploy``, which its own ``serve build`` cannot make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from registry_serve.cli.lookup import (
    RegistryUri,
    TrackingUri,
    model_and_reference,
    registry_at,
    version_number,
    without_password,
)
from registry_serve.cli.screen import AsJson, print_json, say
from registry_serve.contract import Contract
from registry_serve.deployment import deployment_name
from registry_serve.errors import ConfigurationError
from registry_serve.policies import RegistryAddress
from registry_serve.registry import Registry

_HEAD = """\
# Registered models on Ray Serve. On a cluster that runs already:
#
#     serve deploy {file}
#
# or on one of its own: serve run {file}. What may stand here: docs/configuration.md for args, and
# https://docs.ray.io/en/latest/serve/configure-serve-deployment.html for everything else.

http_options:
  host: 127.0.0.1  # 0.0.0.0 to be reachable from elsewhere; then give each application an api_key_file
  port: 8000

applications:
"""
_APPLICATION = """\
  - name: {name}
    route_prefix: {route_prefix}
    import_path: registry_serve:app
    args:
      model: {model}
      version: {version}  # {meaning}
{addresses}\
      # versions: aliased  # which versions requests may name: all, aliased, or numbers such as "1,2"
      # compatibility: backward  # other versions may accept more and answer more; else exact
      # max_models_per_replica: 2  # versions that stay loaded in each replica
      # api_key_file: /path/on/every/node/keys.txt
    deployments:
      - name: {name}  # named after the model: leave it
        num_replicas: 1  # or auto
        ray_actor_options:
          num_cpus: 1  # of each replica
          # num_gpus: 1
"""
_PINNED = "default version, its signature is the contract; @champion or latest: looked up when deployed"
_LOOKED_UP = "default version, its signature is the contract; looked up when deployed"
_FROM_ENVIRONMENT = (
    "      # tracking_uri: MLFLOW_TRACKING_URI of the cluster's environment; a password is for no file\n"
)


@dataclass(frozen=True)
class _Served:
    """A model that can be served, and how its default version is written."""

    model: str
    version: str

    @property
    def name(self) -> str:
        """Of the application, and of the deployment in it."""
        return deployment_name(self.model)


def config(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL[@ALIAS|/VERSION]...", help="Registered models, and perhaps default versions."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; printed if not given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    tracking_uri: TrackingUri = None,
    registry_uri: RegistryUri = None,
    as_json: AsJson = False,
) -> None:
    """Write a config file for Ray's `serve deploy`, with an application for each model."""
    if output is not None and output.exists() and not force:
        raise ConfigurationError(f"{output} exists. Replace it with --force, or name another file with -o.")
    with registry_at(tracking_uri, registry_uri) as registry:
        served = [_served(registry, each) for each in models]
    _require_different(served)
    text = _written(served, registry.address, output or Path("serve_config.yaml"))
    if output is not None:
        _write(output, text)
    if as_json:
        print_json({"file": None if output is None else str(output), "config": yaml.safe_load(text)})
    elif output is None:
        say(text.rstrip("\n"))
    else:
        say(f"Wrote {output}. Deploy it with:\n\n    serve deploy {output}")


def _served(registry: Registry, written: str) -> _Served:
    """Find out what a deployment would: what cannot be served is refused here already."""
    model, reference = model_and_reference(written)
    number = version_number(registry, model, reference)
    Contract(registry.version(model, number))
    return _Served(model, reference or number)


def _require_different(served: Sequence[_Served]) -> None:
    names = [each.name for each in served]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"Two of the models would be the application {name!r}. Name each of them once.")


def _written(served: Sequence[_Served], address: RegistryAddress, file: Path) -> str:
    return _HEAD.format(file=file) + "\n".join(
        _APPLICATION.format(
            name=_quoted(each.name),
            route_prefix="/" if len(served) == 1 else _quoted(f"/{each.name}"),
            model=_quoted(each.model),
            version=_quoted(each.version),
            meaning=_PINNED if each.version.isdigit() else _LOOKED_UP,
            addresses="".join(_addresses(address)),
        )
        for each in served
    )


def _addresses(address: RegistryAddress) -> Iterator[str]:
    uris: dict[str, Any] = {"tracking_uri": address.tracking_uri}
    if address.registry_uri != address.tracking_uri:
        uris["registry_uri"] = address.registry_uri
    if any(uri != without_password(uri) for uri in uris.values()):
        yield _FROM_ENVIRONMENT
        return
    for name, uri in uris.items():
        yield f"      {name}: {_quoted(uri)}\n"


def _quoted(text: str) -> str:
    return json.dumps(text)  # text of JSON is text of YAML


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror}.") from error
