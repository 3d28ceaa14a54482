"""What a model handler looks like: the interface of MosaicML's custom deployments."""

from __future__ import annotations

from typing import Any


class ModelHandlerInterface:
    """A model of any kind, with its own way to load and to answer.

    Subclassing is optional: any class with a ``predict`` will do. A handler is built once in each replica, in the one
    thread that also calls it, so it needs no locks.

        class Shout(ModelHandlerInterface):
            def __init__(self, punctuation="!", **kwargs):
                self.punctuation = punctuation

            def predict(self, model_requests):
                return [request["input"].upper() + self.punctuation for request in model_requests]

    Two methods more are used where a handler has them: ``predict_stream(**one_request)``, a generator that answers one
    request piece by piece, and ``close()``, called once when the replica stops.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take the deployment's ``model_parameters``; those that a subclass does not name are dropped."""

    def predict(self, model_requests: list[dict[str, Any]]) -> list[Any]:
        """Answer a batch, with one output for each request, in their order.

        Args:
            model_requests: each a dict with two keys: ``input``, one of the values that the client sent in its list of
                inputs, and ``parameters``, a dict, empty where the client sent none. Requests of several clients may
                come together, but only such whose parameters are equal.
        """
        # For callers of their own: a server refuses a subclass that does not define it before anything is built.
        raise NotImplementedError
