"""What a deployment file describes, taken online: on the Ray cluster that is there, or on one in the background."""

from registry_serve.rollout.deploying import deploy, update
from registry_serve.rollout.ending import delete, stop
from registry_serve.rollout.logs import logs
from registry_serve.rollout.records import names
from registry_serve.rollout.running import RunningDeployment, running
from registry_serve.rollout.statuses import DeploymentStatus, deployments, status

__all__ = [
    "DeploymentStatus",
    "RunningDeployment",
    "delete",
    "deploy",
    "deployments",
    "logs",
    "names",
    "running",
    "status",
    "stop",
    "update",
]
