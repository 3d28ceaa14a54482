"""Full-size models for the demo, from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from registry_serve.demo.training import Report
from registry_serve.errors import ConfigurationError

MODELS = {
    "translation": "google-t5/t5-base",
    "question_answering": "deepset/roberta-base-squad2",
    "instruct": "Qwen/Qwen2.5-0.5B-Instruct",
}

#: The weights in one format, and everything small: repositories hold the same weights for several frameworks.
WANTED = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]


def download(report: Report) -> dict[str, Path]:
    """Download each model to the hub's own cache, and say where it is there.

    Raises:
        ConfigurationError: the hub does not answer, or does not give the model out.
    """
    folders: dict[str, Path] = {}
    for name, repository in MODELS.items():
        report(len(folders) / len(MODELS))
        try:
            folders[name] = Path(snapshot_download(repository, allow_patterns=WANTED))
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
            raise ConfigurationError(
                f"{repository} cannot be downloaded from the Hugging Face hub ({type(error).__name__}): check the "
                "network, or build the demo without from_hub to train small models here instead."
            ) from error
    report(1.0)
    return folders
