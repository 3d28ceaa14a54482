"""What tests share: a registry with toy models, a data plane in this process, an HTTP client for it."""

import logging
from contextlib import asynccontextmanager

import httpx
import pytest

from registry_serve.contract import Contract
from registry_serve.dataplane import DataPlane
from registry_serve.models.pyfunc import load_pyfunc
from registry_serve.policies import CachePolicy, Limits, RegistryAddress, VersionPolicy
from registry_serve.protocols.native import native_app
from registry_serve.registry import Registry, Resolver
from registry_serve.signature import Compatibility
from tests.toys import Shelf

logging.getLogger("mlflow").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A registry with ``toy``, shared by all tests; add models under other names."""
    return Shelf(tmp_path_factory.mktemp("registry")).fill()


@pytest.fixture
def plane(shelf):
    """A factory of data planes in this process: real registry, real models, no Ray, no HTTP."""

    @asynccontextmanager
    async def make(
        model="toy",
        default="1",
        *,
        versions="all",
        compatibility=Compatibility.EXACT,
        max_models=2,
        load=None,
        start=True,
        **limits,
    ):
        address = RegistryAddress(shelf.uri)
        registry = Registry(address)
        version = registry.version(model, default)
        policy = VersionPolicy.of(versions)
        made = DataPlane(
            Contract(version, Compatibility(compatibility)),
            Resolver(registry, model, version, policy, address),
            load or (lambda each: load_pyfunc(each, registry.download(each))),
            CachePolicy(max_models=max_models),
            Limits(**limits),
        )
        shelf.loads()
        if start:
            await made.start()
        try:
            yield made
        finally:
            await made.aclose()

    return make


@pytest.fixture
def client(plane):
    """A factory of HTTP clients for such a data plane, over ASGI."""

    @asynccontextmanager
    async def make(model="toy", default="1", *, keys=None, **options):
        async with plane(model, default, **options) as made:
            app = native_app(made, model, keys)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://serve.test") as http:
                http.plane = made
                yield http

    return make
