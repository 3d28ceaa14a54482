"""Older keys of deployment files, and where their values are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry_serve.deployment_file.faults import Fault, Path, at, dotted

MOVED: dict[Path, Path] = {
    ("gpu_num",): ("compute", "gpus"),
    ("gpu_type",): ("compute", "gpu_type"),
    ("cluster",): ("compute", "cluster"),
    ("model", "custom_model", "model_handler"): ("model", "model_handler"),
    ("model", "checkpoint_path", "hf_path"): ("model", "download_parameters", "hf_path"),
    ("model", "checkpoint_path", "s3_path"): ("model", "download_parameters", "s3_path"),
    ("model", "checkpoint_path", "gcp_path"): ("model", "download_parameters", "gcp_path"),
}


def modern(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[Path, Path], list[Fault]]:
    """Return the document with every value at its place of today, where each moved one came from, and contradictions.

    The older keys stay too, so that the notices can name them.
    """
    moved, origins, faults = dict(document), {}, []
    for old, new in MOVED.items():
        value, present = at(document, old), at(document, new)
        if value is None:
            continue
        if present is None:
            _put(moved, new, value)
            origins[new] = old
        elif present != value:
            faults.append(Fault(old, f"is the older name of {dotted(new)}, and they differ; keep {dotted(new)}"))
    return moved, origins, faults


def _put(document: dict[str, Any], path: Path, value: Any) -> None:
    """Set a value in copies of the sections on the way; a section that is none is left for the check to tell."""
    for step in path[:-1]:
        section = document.get(str(step))
        if section is not None and not isinstance(section, Mapping):
            return
        document[str(step)] = document = dict(section or {})
    document[str(path[-1])] = value
