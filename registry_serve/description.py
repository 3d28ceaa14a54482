"""What ``GET /model`` tells: the model, its versions, which of them keep the contract, and what is loaded here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.models import ModelSignature

from registry_serve.contract import Contract
from registry_serve.errors import RegistryServeError, RegistryUnavailable
from registry_serve.handlers import HandlerContract, OnlyVersion
from registry_serve.leases import VersionState
from registry_serve.registry import Resolver, VersionKey, VersionSummary

#: Versions without an alias that are looked at, newest first; the default and loaded ones are always among them.
MOST_VERSIONS = 20
#: Versions that are looked up at a time: a page must not fill the line in which requests for new versions wait.
LOOKED_UP_AT_A_TIME = 2


async def describe(
    contract: Contract | HandlerContract,
    resolver: Resolver | OnlyVersion,
    states: Mapping[str, VersionState],
    loaded: Mapping[str, Mapping[str, Any]],
    environment: Callable[[VersionKey], Mapping[str, Any] | None] = lambda key: None,
) -> dict[str, Any]:
    """Describe one model as a mapping ready for JSON.

    Args:
        contract: what the endpoint promises.
        resolver: knows the versions.
        states: version number to what it is doing in this replica.
        loaded: version number to what is told of it while it is loaded.
        environment: what a version's packages are known to differ in, once it was loaded here or refused.

    Returns:
        ``registry_reachable`` is false while the registry does not answer; ``versions`` then holds what is known.
    """
    default = contract.default
    try:
        listed = await resolver.describe()
        reachable = resolver.reachable
    except RegistryUnavailable:
        listed, reachable = [VersionSummary(default.number, default.aliases, default.created, True)], False
    unlisted = await _not_listed_yet(resolver, listed, states)
    summaries = sorted([*listed, *unlisted], key=lambda each: int(each.number), reverse=True)
    # Versions that failed are shown like any other: there may be a thousand of them.
    busy = {number for number, state in states.items() if state is not VersionState.FAILED}
    shown = _shown(summaries, {default.number, *busy})
    free = asyncio.Semaphore(LOOKED_UP_AT_A_TIME)
    described = await asyncio.gather(*(_version(contract, resolver, each, states, free, environment) for each in shown))
    described = [each | {"loaded": loaded.get(each["version"])} for each in described]
    return {
        "name": default.model,
        "default_version": default.number,
        "model_uuid": default.model_uuid,
        "compatibility": contract.compatibility.value,
        "allowed_versions": str(resolver.policy),
        "signature": _signature(default.card.signature),
        "aliases": {alias: each.number for each in [*listed, *unlisted] for alias in each.aliases},
        "registry_reachable": reachable,
        "versions": described,
        "versions_not_shown": len(summaries) - len(shown),
    }


async def _not_listed_yet(
    resolver: Resolver | OnlyVersion, listed: list[VersionSummary], states: Mapping[str, VersionState]
) -> list[VersionSummary]:
    """Summarize the loaded versions that are newer than the list, which is some seconds old."""
    found = []
    for number in states.keys() - {each.number for each in listed}:
        try:
            version = await resolver.resolve(number)
        except RegistryServeError:
            continue  # deleted in the registry since it was loaded
        found.append(VersionSummary(number, version.aliases, version.created, True))
    return found


def _shown(summaries: list[VersionSummary], always: set[str]) -> list[VersionSummary]:
    newest = {each.number for each in summaries[:MOST_VERSIONS]}
    return [each for each in summaries if each.aliases or each.number in newest | always]


async def _version(
    contract: Contract | HandlerContract,
    resolver: Resolver | OnlyVersion,
    summary: VersionSummary,
    states: Mapping[str, VersionState],
    free: asyncio.Semaphore,
    environment: Callable[[VersionKey], Mapping[str, Any] | None],
) -> dict[str, Any]:
    state = states.get(summary.number)
    described: dict[str, Any] = {
        "version": summary.number,
        "aliases": list(summary.aliases),
        "created": summary.created.isoformat(),
        "state": "absent" if state is None else state.value,
        "compatible": None,
        "differences": [],
        "environment": None,
        "unavailable": None,
    }
    try:
        async with free:
            version = await resolver.resolve(summary.number)
    except RegistryServeError as error:
        return described | {"unavailable": error.code}
    differences = contract.differences(version)
    found = {"compatible": not differences, "differences": differences, "environment": environment(version.key)}
    return described | found


def _signature(signature: ModelSignature | None) -> dict[str, Any]:
    parts = {} if signature is None else {"inputs": signature.inputs, "outputs": signature.outputs}
    described: dict[str, Any] = {name: part and part.to_dict() for name, part in parts.items()}
    return described | {"params": signature.params.to_dict() if signature and signature.params else []}
