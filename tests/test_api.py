"""What the package exports, its tree of errors, and what its settings refuse."""

import inspect
import pickle

import pytest

import registry_serve
from registry_serve import errors
from registry_serve.errors import ConfigurationError, RegistryServeError
from registry_serve.policies import CachePolicy, Limits, LoadPolicy, RegistryAddress, VersionPolicy


def tree(root=RegistryServeError):
    ours = [child for child in root.__subclasses__() if child.__module__.startswith(f"{errors.__name__}.")]
    return [root, *(found for child in ours for found in tree(child))]


def test_the_exported_names_are_these_and_sorted():
    assert registry_serve.__all__ == sorted(registry_serve.__all__)
    assert all(hasattr(registry_serve, name) for name in registry_serve.__all__)
    public = {name for name, value in vars(registry_serve).items() if not name.startswith("_")}
    public = {name for name in public if not inspect.ismodule(getattr(registry_serve, name))}
    assert public | {"__version__"} == set(registry_serve.__all__)
    assert inspect.isfunction(registry_serve.app)


def test_every_error_is_exported_and_drawn_in_the_tree():
    drawn = errors.__doc__
    for error in tree():
        assert error.__name__ in registry_serve.__all__
        assert error.__name__ in drawn


def test_codes_are_stable_words_of_their_own():
    codes = [error.code for error in tree()]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


EXAMPLES = {
    "RegistryServeError": (),
    "ConfigurationError": ("No.",),
    "SignatureMissing": ("m", "1"),
    "SignatureUnsupported": ("No.",),
    "HandlerInvalid": ("package.module.Handler", "it is not a class"),
    "DownloadFailed": ("s3://bucket/model", "access is denied"),
    "DeploymentFileInvalid": ("deployment.yaml", 3, "replicas must be an integer"),
    "DeploymentNotFound": ("hello", ("world",)),
    "DeploymentEnded": ("hello", ("world",)),
    "UnknownArgument": ("replicas", ("replica_num",)),
    "ResourcesMissing": ("No.",),
    "EndpointFailed": ("No.",),
    "WarmUpFailed": ("No.",),
    "ReplicaStuck": ("A call of version 1", 301.5),
    "MalformedJSON": ("expected value", 1, 2),
    "TooManyTokens": (70, 64),
    "VersionReferenceConflict": ("No.",),
    "Unauthenticated": (),
    "VersionForbidden": ("m", "2", "versions 1"),
    "ForeignOrigin": (),
    "ModelNotFound": ("m",),
    "VersionNotFound": ("m", "9", ("2", "1")),
    "ModelNotServed": ("m", "gpt-4"),
    "SignatureConflict": ("m", "2", "1", [{"message": "it differs"}]),
    "BodyTimeout": (1.5,),
    "BodyTooLarge": (5,),
    "InvalidRequest": ([{"location": ["a", 1], "message": "is required"}],),
    "PredictionFailed": ("m", "1", "raised an error"),
    "LoadFailed": ("m", "1", "it is broken"),
    "DiskFull": ("m", "1"),
    "CodeConflict": ("m", "1", "utils"),
    "EnvironmentConflict": ("m", "1", [{"requirement": "six==1.16.0", "installed": None}] * 5),
    "TooManyRequests": (5,),
    "VersionOverloaded": (5,),
    "RateLimited": (2.5, 1),
    "StreamingUnsupported": ("m", "1"),
    "GenerationUnsupported": ("m", "1"),
    "RegistryUnavailable": ("reading",),
    "VersionLoading": ("m", "1", 1.5),
    "ModelProcessDied": ("m", "1"),
    "DeploymentUnavailable": ("hello", "has no replica that answers"),
    "Draining": (),
    "PredictionTimeout": ("m", "1", 1.5),
}


@pytest.mark.parametrize("error", tree(), ids=lambda error: error.__name__)
def test_every_error_speaks_in_sentences_and_survives_pickling(error):
    made = error(*EXAMPLES[error.__name__])
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), again.detail, again.members) == (error, made.detail, made.members)
    assert str(made) == made.detail
    assert made.detail.endswith(".") or error is RegistryServeError
    assert error.status >= 400
    assert error.title


def test_an_answer_names_a_bounded_number_of_faults():
    error = errors.InvalidRequest([{"location": [n], "message": "is required"} for n in range(1000)])
    assert len(error.members["errors"]) == 20
    assert len(error.args[0]) == 20
    assert "and 999 more" in error.detail


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ([], "The body"),
        (["prompt"], "prompt"),
        ([1, "prompt"], "[1].prompt"),
        (["inputs", 1, "a", 0], "inputs[1].a[0]"),
        (["params", "t"], "params.t"),
    ],
)
def test_the_place_of_a_fault_reads_like_a_path(location, place):
    faults = [{"location": location, "message": "is required"}]
    assert errors.InvalidRequest(faults).detail == f"{place} is required."
    assert errors.InvalidRequest(faults, 2).detail == f"{place} is required (and 2 more)."
    assert errors.InvalidRequest(faults, None).detail == f"{place} is required (and more)."
    both = errors.InvalidRequest.together([errors.InvalidRequest(faults), errors.InvalidRequest(faults, 1)])
    assert both.detail == f"{place} is required (and 2 more)."


@pytest.mark.parametrize(
    ("given", "allows", "refuses"),
    [
        ("all", [("1", ()), ("7", ("x",))], []),
        ("aliased", [("7", ("x",))], [("1", ())]),
        ("1, 02", [("1", ()), ("2", ())], [("3", ("x",))]),
        ([1, "2"], [("1", ())], [("12", ())]),
        (3, [("3", ())], [("1", ())]),
    ],
)
def test_a_version_policy_is_built_from_what_people_write(given, allows, refuses):
    policy = VersionPolicy.of(given)
    assert all(policy.allows(*each) for each in allows)
    assert not any(policy.allows(*each) for each in refuses)
    assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize(
    "make",
    [
        lambda: VersionPolicy.of("some"),
        lambda: VersionPolicy.of(["1.5"]),
        lambda: LoadPolicy("mend"),
        lambda: LoadPolicy("isolate", isolation=False),
        lambda: CachePolicy(max_models=0),
        lambda: CachePolicy(max_concurrent_loads=0),
        lambda: Limits(max_body_bytes=0),
        lambda: Limits(request_timeout_s=-1),
        lambda: RegistryAddress(""),
        lambda: RegistryAddress("x", timeout_s=0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()
