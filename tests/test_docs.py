"""The documentation is complete and true: settings, errors, links, and the README's own lines."""

import inspect
import json
import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import requests
import typer
from ray import serve

from registry_serve import (
    AppArgs,
    BatchPolicy,
    CachePolicy,
    ConfigurationError,
    EndpointFailed,
    Limits,
    ReplicaStuck,
    WarmUpFailed,
    cli,
    deployment_from_model_name,
    metrics,
)
from registry_serve.signature import Compatibility
from tests.test_api import tree

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def section(page, title):
    text = (ROOT / "docs" / page).read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_argument_is_described_with_its_default():
    described = section("configuration.md", "deployment_from_model_name")
    for name, parameter in inspect.signature(deployment_from_model_name).parameters.items():
        row = next((line for line in described.splitlines() if line.startswith(f"| `{name}` |")), None)
        assert row, f"docs/configuration.md says nothing about {name}"
        default = parameter.default
        if isinstance(default, (int, str)) and default is not inspect.Parameter.empty:
            shown = default.value if isinstance(default, Compatibility) else default
            assert f"`{json.dumps(shown)}`" in row


def test_every_argument_of_the_app_is_described():
    described = section("configuration.md", "`registry_serve:app`")
    for name in AppArgs.model_fields:
        assert f"`{name}`" in described


@pytest.mark.parametrize(("heading", "policy"), [("Limits", Limits), ("Cache", CachePolicy), ("Batching", BatchPolicy)])
def test_every_setting_is_described_with_its_default(heading, policy):
    described = section("configuration.md", heading)
    for field in fields(policy):
        default = "none" if field.default is None else f'`"{field.default}"`'
        if isinstance(field.default, (int, float)):
            default = f"{field.default:.10g}"
        assert f"| `{field.name}` | {default} |" in described


def test_every_metric_is_described():
    described = section("configuration.md", "Metrics")
    named = re.findall(r"``(registry_serve_\w+)``", metrics.__doc__)
    assert len(named) == 7
    assert [name for name in named if f"| `{name}` |" not in described] == []


def test_every_error_code_is_described():
    described = (ROOT / "docs" / "errors.md").read_text()
    for error in tree():
        assert f"`{error.code}`" in described
        if not issubclass(
            error, (ConfigurationError, EndpointFailed, WarmUpFailed, ReplicaStuck)
        ):  # these answer no request
            assert f"| {error.status} | `{error.code}` |" in described


def test_every_invariants_test_exists():
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs" / "architecture.md").read_text())
    assert len(named) > 8
    assert [name for name in named if f"def {name}(" not in sources] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not target.startswith("http"):
            linked = page.parent / target if target else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(linked.read_text()), f"{page.name} links to {target}#{anchor}"


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(command=None, path=()):
    """Every command of the command line with its words, groups and the program itself among them."""
    command = command or typer.main.get_command(cli.app)
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda each: " ".join(each) if each.__class__ is tuple else ""
)
def test_every_command_and_every_option_is_described(path, command):
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("running.md", "cli.md"))
    arguments = {f"--{name.replace('_', '-')}" for name in AppArgs.model_fields} if path == ("run",) else set()
    offered = {name for each in command.params for name in each.opts if name.startswith("--")}
    assert [name for name in offered - arguments if f"`{name}" not in pages] == []
    assert "registry-serve " + " ".join(path) in pages or not path


def test_the_changelog_and_the_version_agree():
    from registry_serve import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text()
    heading = "Unreleased" if "dev" in __version__ else __version__
    assert f"## [{heading}]" in changelog


# --- the tour --------------------------------------------------------------------------------------------------------

COMMAND = re.compile(r"^\$ (curl .*)\n((?:(?!\$ ).*\n)*?)(?:\n|```)", re.MULTILINE)


def tour():
    text = (ROOT / "README.md").read_text().split("## The tour")[1].split("\n## ")[0]
    return COMMAND.findall(text)


@pytest.fixture(scope="module")
def demo(cluster, demo_registry):
    """The demo, served as ``make demo`` does it, with less of each CPU."""
    for model in demo_registry.versions:
        prefix = "/" if model == "translation_model" else f"/{model}"
        deployment = deployment_from_model_name(model, tracking_uri=demo_registry.tracking_uri)
        deployment = deployment.options(ray_actor_options={"num_cpus": 0.5})
        serve.run(deployment.bind(), name=model, route_prefix=prefix)
    yield cluster.address
    for model in demo_registry.versions:
        serve.delete(model)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize(("command", "printed"), tour(), ids=lambda text: text[-30:])
def test_the_readmes_tour_prints_what_it_says(demo, command, printed):
    words = shlex.split(command.replace("http://127.0.0.1:8000", demo))
    answered = json.loads(subprocess.run([*words, "-s"], capture_output=True, check=True, timeout=60).stdout)
    shortened = re.sub(r"\s*\n\s*", " ", printed.strip())
    if "..." not in shortened:
        expected = json.loads(shortened)
        for one, other in zip(answered, expected, strict=True):
            one.pop("score", None), other.pop("score", None)  # the last digits differ between machines
        assert answered == expected
        return
    for part in re.split(r",? ?\.\.\.,?\s*", shortened):
        for member in re.findall(r'"\w+":"[^"]*"', part):
            name, value = json.loads("{" + member + "}").popitem()
            assert value in json.dumps(answered), name


@pytest.mark.cluster
@pytest.mark.slow
def test_the_tour_is_long_enough_and_its_pages_are_there(demo):
    assert len(tour()) == 6
    assert requests.get(f"{demo}/docs", timeout=30).status_code == 200
    versions = requests.get(f"{demo}/model", timeout=30).json()["versions"]
    assert [each["compatible"] for each in versions] == [False, True, True]
