"""A model handler that reads what a downloader has fetched, and looks at the parameters of a request."""

import json
from typing import Any

from hello_world.custom_downloader import LOCAL_COPY
from registry_serve import ModelHandlerInterface


class HelloWorldModelHandler(ModelHandlerInterface):
    def __init__(self, print_string: str) -> None:
        print(print_string)
        self._greetings = json.loads((LOCAL_COPY / "greetings.json").read_text(encoding="utf-8"))

    def predict(self, model_requests: list[dict[str, Any]]) -> list[str]:
        return [self._greeting(each["parameters"]).format(each["input"]) for each in model_requests]

    def _greeting(self, parameters: dict[str, Any]) -> str:
        return self._greetings.get(parameters.get("language"), self._greetings["en"])
