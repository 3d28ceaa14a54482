"""Bringing model files to this machine."""

from registry_serve.downloaders.artifacts import ArtifactCache, Usage, is_disk_full, local_directory
from registry_serve.downloaders.copies import ModelFiles
from registry_serve.downloaders.manifests import size_of
from registry_serve.downloaders.once import fetch, forget, under_way
from registry_serve.downloaders.plugins import Download, checks_itself
from registry_serve.downloaders.progress import Progress, current_report

__all__ = [
    "ArtifactCache",
    "Download",
    "ModelFiles",
    "Progress",
    "Usage",
    "checks_itself",
    "current_report",
    "fetch",
    "forget",
    "is_disk_full",
    "local_directory",
    "size_of",
    "under_way",
]
