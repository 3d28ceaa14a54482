"""A checked request, and what makes requests of bodies and answers of predictions, whatever kind the model is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        rows: checked rows, in the form that its schema made of them.
        params: given params, or None where the body has none.
        count: number of rows; for tensors, the length of the first dimension.
        size_bytes: of the body it came in; 0 where it did not come in one.
        group: its group key, where its schema finds that out with the check.
        texts: whether the rows are texts or conversations, and the params ``GenerationParameters``: it came by a
            protocol for language models, and not in the form of a signature.
    """

    rows: list[Any]
    params: dict[str, Any] | None
    count: int
    size_bytes: int = 0
    group: Hashable | None = None
    texts: bool = False


class AnswerInvalid(ValueError):
    """A prediction is no answer to its request. ``args``: what the model did, to follow its name in a sentence."""


class Schema(Protocol):
    """What the requests of one model version look like."""

    def parse(self, body: bytes) -> Request:
        """Parse and check a body; raises ``MalformedJSON`` or ``InvalidRequest``."""

    def check(self, value: Any) -> Request:
        """Check a decoded body; raises ``InvalidRequest``."""

    def check_call(self, rows: Any, params: Mapping[str, Any] | None = None) -> Request:
        """Check rows and params that came apart; raises ``InvalidRequest``."""

    def check_inputs(self, inputs: Sequence[Any], parameters: Mapping[str, Any]) -> Request:
        """Check a list of inputs with settings for all of them; raises ``InvalidRequest``."""

    def group(self, request: Request) -> Hashable | None:
        """Return a key: requests with equal keys may share a call, one with None never."""

    def merge(self, requests: Sequence[Request]) -> Request:
        """Return one request with the rows of several of one group, in their order."""

    def data(self, request: Request) -> Any:
        """Return what the model's ``predict`` is given."""

    def answer(self, prediction: Any, count: int) -> Any:
        """Turn a prediction for so many rows into plain JSON values; raises ``AnswerInvalid``, or any ValueError."""
