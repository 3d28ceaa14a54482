"""What becomes of applications that are brought up: that all their replicas run, or why not, in one line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping

from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from registry_serve import errors
from registry_serve.errors import ConfigurationError

Overviews = Mapping[str, ApplicationStatusOverview]

_POLL_S = 0.1
#: What Serve was just given may not be listed yet.
_LISTED_WITHIN_S = 10.0
_RAISED = re.compile(r"^(?:\w+\.)*(\w+): (.+)$", re.MULTILINE)
_CHAINED = re.compile(r"^The above exception was the direct cause of the following exception:$", re.MULTILINE)


def wait_until_running(names: Collection[str], tell: Callable[[str], None], doing: Callable[[int], str]) -> None:
    """Wait until every replica of some applications is ready; there is no limit to how long a model may load.

    Args:
        names: of the applications.
        tell: hears how far it is, whenever that changes.
        doing: makes a sentence of the number of replicas that are ready.

    Raises:
        ConfigurationError: a replica cannot start. Ray would try again and again; nothing says that it would help. Or
            somebody has deleted an application.
    """
    said = ""
    known: set[str] = set()
    deadline = time.monotonic() + _LISTED_WITHIN_S
    while True:
        there = serve.status().applications
        applications = {name: there[name] for name in names if name in there and not _ends(there[name])}
        known.update(applications)
        expected = names if time.monotonic() > deadline else known
        for name in expected:
            if name not in applications:
                raise ConfigurationError(f"{name} was deleted meanwhile.")
        for overview in applications.values():
            raise_failure(overview)
        if len(applications) == len(names) and all(map(runs, applications.values())):
            return
        crowded = any(map(_waits_for_room, applications.values()))
        now = doing(sum(map(ready, applications.values()))) + ("; the cluster has no room for more" if crowded else "")
        if now != said:
            tell(now)
            said = now
        time.sleep(_POLL_S)


def runs(overview: ApplicationStatusOverview) -> bool:
    """Say whether an application is all there."""
    return overview.status == ApplicationStatus.RUNNING


def ready(overview: ApplicationStatusOverview) -> int:
    """Return how many replicas of an application are ready."""
    states = [each.replica_states for each in overview.deployments.values()]
    return sum(count for each in states for state, count in each.items() if state == "RUNNING")


def _ends(overview: ApplicationStatusOverview) -> bool:
    return overview.status == ApplicationStatus.DELETING


def _waits_for_room(overview: ApplicationStatusOverview) -> bool:
    return any("to be scheduled" in each.message for each in overview.deployments.values())


def raise_failure(overview: ApplicationStatusOverview) -> None:
    """Raise what keeps an application from running, if anything does.

    Raises:
        ConfigurationError: something does.
    """
    messages = [each.message for each in overview.deployments.values()]
    for message in messages:
        if "failed to start" in message:
            raise ConfigurationError(cause(message))
    if overview.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
        raise ConfigurationError(cause(" ".join([*filter(None, messages), overview.message])))


def cause(message: str) -> str:
    """Return what a replica failed of, in one line, from the traces that Ray tells.

    An error of ours is followed by the exception that caused it, if one did.
    """
    raised = [_RAISED.findall(part) for part in _CHAINED.split(message)]
    last: list[tuple[str, str]] = [found[-1] for found in raised if found]
    if not last:
        return " ".join(message.split())[-500:]
    name, sentence = last[-1]
    if not (isinstance(getattr(errors, name, None), type)):
        return f"{name}: {sentence}"
    return sentence + "".join(f" {first}: {why}" for first, why in last[-2:-1] if why not in sentence)
