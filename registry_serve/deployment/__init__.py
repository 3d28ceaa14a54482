"""A model -> a Ray Serve deployment class. The only place that knows Serve's decorators."""

from registry_serve.deployment.handled import deployment_from_handler
from registry_serve.deployment.registered import cache_policy, deployment_from_model_name
from registry_serve.deployment.replica import deployment_name

__all__ = ["cache_policy", "deployment_from_handler", "deployment_from_model_name", "deployment_name"]
