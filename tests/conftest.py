"""What tests share: a registry with toy models, a data plane in this process, an HTTP client for it."""

import logging
import os
import shutil
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import pytest

from registry_serve.contract import Contract
from registry_serve.dataplane import DataPlane
from registry_serve.models.held import load_held
from registry_serve.models.pyfunc import load_pyfunc
from registry_serve.policies import BatchPolicy, CachePolicy, Limits, RegistryAddress, VersionPolicy
from registry_serve.protocols.native import native_app
from registry_serve.registry import Registry, Resolver
from registry_serve.signature import Compatibility
from tests.demo_builds import demo_history, demo_registry  # noqa: F401 - fixtures
from tests.mlflow_server import free_port
from tests.toys import Shelf

logging.getLogger("mlflow").setLevel(logging.ERROR)
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # Serve kills a proxy that starts more slowly


def pytest_collection_modifyitems(items):
    """Run the files first that take longest: the last one keeps only one of the processes that test busy.

    With several processes this needs ``--no-loadscope-reorder``, or xdist sorts them by the number of their tests.
    """
    seconds = Counter()
    for item in items:
        marked = item.get_closest_marker
        seconds[item.path] += 25 if marked("slow") else 6 if marked("cluster") else 0.2
    items.sort(key=lambda item: (-seconds[item.path], item.path))


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
        cache=None,
        batching="auto",
        load=None,
        start=True,
        uri=None,
        **limits,
    ):
        address = RegistryAddress(uri or shelf.uri, timeout_s=3.0)
        registry = Registry(address)
        version = registry.version(model, default)
        policy = VersionPolicy.of(versions)
        made = DataPlane(
            Contract(version, Compatibility(compatibility)),
            Resolver(registry, model, version, policy, address),
            load or (lambda each: load_held(partial(registry.download, each), partial(load_pyfunc, each))),
            cache=cache or CachePolicy(max_models=max_models),
            batching=BatchPolicy(mode=batching) if isinstance(batching, str) else batching,
            limits=Limits(**limits),
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


@dataclass(frozen=True)
class Cluster:
    """A running Ray cluster with Serve.

    Attributes:
        address: of Serve's proxy.
        port: of the same.
        gcs: what ``RAY_ADDRESS`` must be to join.
        dashboard: address of Ray's REST API.
    """

    address: str
    port: int
    gcs: str
    dashboard: str


@pytest.fixture(scope="session")
def cluster():
    """One small cluster for the whole run, or for each process of it."""
    os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RUNTIME_ENV_RETRY_TIMES"] = "1"  # an environment that cannot be made is not tried for a minute
    import ray
    from ray import serve

    port, dashboard = free_port(), free_port()
    context = ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    yield Cluster(
        f"http://127.0.0.1:{port}", port, context.address_info["gcs_address"], f"http://127.0.0.1:{dashboard}"
    )
    serve.shutdown()
    ray.shutdown()


@pytest.fixture
def browser():
    """A headless Chromium from the system's packages; Playwright keeps an event loop running meanwhile."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    assert program, "The documentation page is tested in a real browser: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield started
        started.close()
