"""What the demo registry holds, and how it gets there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel

from registry_serve.demo import instruct, question_answering, translation
from registry_serve.demo.introductions import EXPECTED, PASSAGE
from registry_serve.demo.registry import ARTIFACTS, DATABASE
from registry_serve.demo.training import Report

#: An app without arguments serves the registered model with this tag.
DEFAULT_TAG = "registry_serve.default"

DESCRIPTIONS = {
    "translation_model": "Translates English sentences; its versions differ in the language, or in the signature.",
    "question_answerer": f"Answers questions about one passage: {PASSAGE}",
    "instruct_llm": "Follows an instruction, with temperature and max_tokens as parameters.",
}


@dataclass(frozen=True)
class Version:
    """One version to register; ``snapshot`` names its weights and tokenizer."""

    model: str
    description: str
    python_model: PythonModel
    snapshot: str
    signature: ModelSignature
    example: dict[str, list[str]]
    settings: dict[str, str]
    alias: str = ""


def _translator(target: str, column: str, sentence: str, description: str, alias: str = "") -> Version:
    return Version(
        model="translation_model",
        description=description,
        python_model=translation.TranslationModel(),
        snapshot="translation",
        signature=translation.signature(column),
        example={column: [sentence]},
        settings={"source_language": "en", "target_language": target, "input_column": column},
        alias=alias,
    )


def versions() -> list[Version]:
    """Return all versions, in the order in which they are registered."""
    return [
        _translator("de", "prompt", "Hello my name is Jonathan.", "English to German.", "champion"),
        _translator("fr", "prompt", "Hello my name is Jon.", "English to French.", "french"),
        _translator(
            "de", "text_to_translate", "Hello my name is Jon.", "English to German, with another input column."
        ),
        Version(
            model="question_answerer",
            description="Extracts the answer from the passage.",
            python_model=question_answering.QuestionAnswererModel(),
            snapshot="question_answering",
            signature=question_answering.SIGNATURE,
            example={"question": list(EXPECTED)},
            settings={"passage": PASSAGE},
        ),
        Version(
            model="instruct_llm",
            description="Writes one candidate for the first row.",
            python_model=instruct.InstructModel(),
            snapshot="instruct",
            signature=instruct.SIGNATURE,
            example={"prompt": ["What is machine learning?"]},
            settings={},
        ),
    ]


def create(folder: Path) -> mlflow.MlflowClient:
    """Create an empty registry in the folder, and make it this process's own."""
    address = f"sqlite:///{(folder / DATABASE).as_posix()}"
    mlflow.set_tracking_uri(address)
    mlflow.set_registry_uri(address)
    client = mlflow.MlflowClient(address, address)
    experiment = client.create_experiment("demo", artifact_location=(folder / ARTIFACTS).as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    return client


def fill(client: mlflow.MlflowClient, snapshots: Mapping[str, Path], report: Report) -> None:
    """Log and register all versions, with their aliases, tags and descriptions."""
    for model, description in DESCRIPTIONS.items():
        client.create_registered_model(model, description=description)
    client.set_registered_model_tag("translation_model", DEFAULT_TAG, "true")
    wanted = versions()
    for done, version in enumerate(wanted):
        report(done / len(wanted))
        number = _log(version, snapshots[version.snapshot])
        client.update_model_version(version.model, number, description=version.description)
        if version.alias:
            client.set_registered_model_alias(version.model, version.alias, number)
    report(1.0)


def _log(version: Version, snapshot: Path) -> str:
    optional: dict[str, Any] = {"model_config": version.settings} if version.settings else {}
    with mlflow.start_run(run_name=version.description):
        logged = mlflow.pyfunc.log_model(
            name=version.model,
            registered_model_name=version.model,
            python_model=version.python_model,
            artifacts={"snapshot": str(snapshot)},
            signature=version.signature,
            input_example=pd.DataFrame(version.example),
            pip_requirements=["torch", "transformers"],
            **optional,
        )
    return str(logged.registered_model_version)
