"""HandlerSpec: which handler a deployment runs, and with what. A value; it travels inside the deployment class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry_serve.downloaders import Download

#: The entry point that is used where no handler is named.
DEFAULT_HANDLER = "huggingface"


@dataclass(frozen=True)
class HandlerSpec:
    """Which handler, built from what.

    Attributes:
        handler: a class; its dotted path, whose parts may hold dashes; or the name of an entry point in the group
            ``registry_serve.handlers``.
        parameters: keywords that it is built with.
        download: what is downloaded to the node before it is built.
        code_paths: folders its code is imported from, absolute or below the replica's working directory.
    """

    handler: str | type = DEFAULT_HANDLER
    parameters: Mapping[str, Any] = field(default_factory=dict)
    download: Download = field(default_factory=Download)
    code_paths: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The handler in words."""
        if isinstance(self.handler, str):
            return self.handler
        return f"{self.handler.__module__}.{self.handler.__qualname__}"
