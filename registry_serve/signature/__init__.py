"""What an MLflow signature means for JSON: requests, frames, answers, and whether two signatures agree."""

from registry_serve.signature.answers import answer, declared_answer_json, mismatch, plain
from registry_serve.signature.compatibility import Compatibility, Difference, differences
from registry_serve.signature.examples import example_body
from registry_serve.signature.requests import AnswerInvalid, Request, Schema
from registry_serve.signature.rows import Place, fault, located
from registry_serve.signature.schema import RequestSchema, decode

__all__ = [
    "AnswerInvalid",
    "Compatibility",
    "Difference",
    "Place",
    "Request",
    "RequestSchema",
    "Schema",
    "answer",
    "declared_answer_json",
    "decode",
    "differences",
    "example_body",
    "fault",
    "located",
    "mismatch",
    "plain",
]
