"""Bringing model files to this machine."""

from registry_serve.downloaders.artifacts import ArtifactCache, Usage, is_disk_full, local_directory
from registry_serve.downloaders.copies import ModelFiles
from registry_serve.downloaders.manifests import size_of

__all__ = ["ArtifactCache", "ModelFiles", "Usage", "is_disk_full", "local_directory", "size_of"]
