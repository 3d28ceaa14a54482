"""The smallest model handler: it answers with what it is asked."""

from typing import Any

from registry_serve import ModelHandlerInterface


class HelloWorldModelHandler(ModelHandlerInterface):
    def predict(self, model_requests: list[dict[str, Any]]) -> list[Any]:
        return [request["input"] for request in model_requests]
