"""Everything asked of an MLflow registry: models, versions, aliases, signatures and artifacts."""

from registry_serve.registry.addresses import database_file, registry_address, require_database
from registry_serve.registry.client import Registry
from registry_serve.registry.patience import impatient_http, make_http_impatient
from registry_serve.registry.records import (
    ModelCard,
    ModelVersion,
    RegisteredModelSummary,
    VersionKey,
    VersionSummary,
)
from registry_serve.registry.references import Reference, is_blank, parse_reference
from registry_serve.registry.resolver import Resolver

__all__ = [
    "ModelCard",
    "ModelVersion",
    "Reference",
    "RegisteredModelSummary",
    "Registry",
    "Resolver",
    "VersionKey",
    "VersionSummary",
    "database_file",
    "impatient_http",
    "is_blank",
    "make_http_impatient",
    "parse_reference",
    "registry_address",
    "require_database",
]
