"""Bringing model files to this machine."""

from registry_serve.downloaders.artifacts import ArtifactCache, local_directory

__all__ = ["ArtifactCache", "local_directory"]
