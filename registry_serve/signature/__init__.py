"""What an MLflow signature means for JSON: requests, frames, answers, and whether two signatures agree."""

from registry_serve.signature.answers import answer, declared_answer_json, mismatch
from registry_serve.signature.compatibility import Compatibility, Difference, differences
from registry_serve.signature.examples import example_body
from registry_serve.signature.schema import Request, RequestSchema, decode

__all__ = [
    "Compatibility",
    "Difference",
    "Request",
    "RequestSchema",
    "answer",
    "declared_answer_json",
    "decode",
    "differences",
    "example_body",
    "mismatch",
]
