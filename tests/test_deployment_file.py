"""Deployment files: what is read, what is refused and with which words, what is said, and what is never shown."""

import json
import pickle
from pathlib import Path
from typing import get_args, get_origin

import jsonschema
import pytest
import ray.util.accelerators
import yaml
from pydantic import BaseModel

from registry_serve.deployment_file import (
    DeploymentFile,
    accelerator_type,
    json_schema,
    masked,
    notices,
    parse,
    read,
)
from registry_serve.deployment_file.gpu_types import ACCELERATOR_TYPES
from registry_serve.errors import ConfigurationError, DeploymentFileInvalid

ROOT = Path(__file__).parent.parent
HELLO = """\
name: hello-world-model
compute:
  gpus: 1
  gpu_type: a100_40gb
replicas: 1
image: mosaicml/inference
integrations:
  - integration_type: git_repo
    git_repo: hello_world
model:
  model_handler: hello_world.hello_world_handler.HelloWorldModelHandler
  model_parameters:
    print_string: "hello world!"
"""
WITH_A_DOWNLOADER = HELLO.replace(
    "model:\n",
    "model:\n  downloader: hello_world.custom_downloader.download_model\n"
    "  download_parameters:\n    my_custom_location: my_custom_location\n",
)
EVERYTHING = """\
name: everything
replicas: 3
image: my/image
command: |
  export API_TOKEN=hunter2 OTHER=shown
  curl --api-key hunter2 -H "Authorization: Bearer hunter2" https://ann:hunter2@example.com/x?token=hunter2&page=2
metadata: {team: search, nested: [{password: hunter2}], since: 2024-01-01, at: 12:30}
env_variables:
  - {key: AWS_SECRET_ACCESS_KEY, value: hunter2}
  - key: PIN
    value: 0123
  - {key: ANSWER, value: yes}
  - {key: SMALL, value: 1e3}
  - {key: EMPTY, value: }
rate_limit: 2.5
compute: {cluster: r1, instance: oci.4, nodes: 2, gpu_type: h100_80gb, gpus: 0.5, cpus: 1.5}
batching: {max_batch_size: 8, max_timeout_ms: 20, max_batch_size_in_bytes: 1000, max_queue_size: 9}
integrations:
  - integration_type: git_repo
    git_repo: https://ann:hunter2@example.com/org/repo
    git_commit: 0123456
    ssh_clone: no
  - {integration_type: pip_packages, packages: [numpy, "git+https://hunter2@example.com/x"]}
  - {integration_type: apt_packages, packages: [git]}
  - {integration_type: wandb, project: p, api_key: hunter2}
  - {integration_type: comet_ml, workspace: w}
model:
  model_handler: examples.inference-deployments.mpt.mpt_handler.MPTModelHandler
  model_parameters: {hf_token: hunter2, max_new_tokens: 256, temperature: 1e-3}
  downloader: my.downloader
  download_parameters: {any: [1, null], credentials: {user: hunter2}}
  backend: faster_transformers
"""
GOOD = {
    "hello": HELLO,
    "with a downloader": WITH_A_DOWNLOADER,
    "everything": EVERYTHING,
    "the default handler": "name: a\nmodel:\n  model_parameters: {task: feature-extraction}\n"
    "  download_parameters: {hf_path: org/name}\n",
    "default_model": "name: a\ndefault_model:\n  model_type: mpt-7b\n  checkpoint_path: {s3_path: s3://bucket/x}\n",
    "registered": "name: a\nmodel: {registered_model: translation_model, version: 3}\n",
    "older keys": "name: a\ngpu_num: 1\ngpu_type: a100_40gb\ncluster: r1\nmodel:\n"
    "  checkpoint_path: {hf_path: mosaicml/mpt-7b}\n  custom_model: {model_handler: a.B}\n",
    "unknown keys": "name: a\ndeployment_id: 7\nreplica: 2\nmodel: {model_handler: a.B}\n",
    "an entry point": "name: a\nmodel: {model_handler: my-handler}\n",
    "infinite": "name: a\nmetadata: {most: .inf}\nmodel: {model_handler: a.B, model_parameters: {a: null, b: .inf}}\n",
    "empty sections": "name: a\ncompute:\nmetadata:\nmodel: {model_handler: a.B, downloader: }\n",
    "a kind of GPU that nobody needs": "name: a\ncompute: {gpus: 0, gpu_type: abacus}\nmodel: {model_handler: a.B}\n",
    "merges": "name: a\nx-shared: &shared {gpus: 2, cpus: 1}\ncompute: {<<: *shared, cpus: 3}\n"
    "model: {model_handler: a.B}\n",
}


@pytest.fixture
def reading(tmp_path, monkeypatch):
    """Return a function that reads a text as the file ``deployment.yaml`` of the current folder."""
    monkeypatch.chdir(tmp_path)

    def read_text(text):
        Path("deployment.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read("deployment.yaml")

    return read_text


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_good_files_are_read_and_come_back_from_a_record(text, reading):
    file = reading(text)
    stored = json.loads(json.dumps(file.model_dump(mode="json")))
    assert parse(stored) == file
    assert masked(file)["name"] == file.name
    assert pickle.loads(pickle.dumps(file)) == file


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_the_schema_accepts_good_files(text):
    document = json.loads(json.dumps(yaml.safe_load(text), default=str))
    jsonschema.validate({key: value for key, value in document.items() if value is not None}, json_schema())


def test_the_walk_through_means_what_it_says(reading):
    file = reading(WITH_A_DOWNLOADER)
    assert (file.name, file.replicas, file.compute.gpus, file.compute.gpu_type) == (
        "hello-world-model",
        1,
        1,
        "a100_40gb",
    )
    assert file.integrations[0].git_repo == "hello_world"
    assert file.model.model_handler == "hello_world.hello_world_handler.HelloWorldModelHandler"
    assert file.model.model_parameters == {"print_string": "hello world!"}
    assert file.model.downloader == "hello_world.custom_downloader.download_model"
    assert file.model.download_parameters == {"my_custom_location": "my_custom_location"}
    assert notices(file) == ["image is not used: replicas run in this machine's Python; --use-image runs them in it."]
    assert notices(file, use_image=True) == []


def test_text_stays_as_it_is_written(reading):
    file = reading(EVERYTHING)
    assert [each.value for each in file.env_variables] == ["hunter2", "0123", "yes", "1e3", ""]
    assert file.integrations[0].git_commit == "0123456"
    assert file.integrations[0].ssh_clone is False
    assert file.metadata["since"] == "2024-01-01"
    assert file.metadata["at"] == "12:30"
    assert file.model.model_parameters["temperature"] == 0.001
    assert reading("name: 0123\nmodel: {registered_model: on, version: 03}\n").name == "0123"
    assert parse({"name": "a", "model": {"registered_model": "m", "version": 3}}).model.version == "3"


def test_defaults_are_ours(reading):
    file = reading("name: a\ncompute:\nmodel: {model_handler: a.B, downloader: }\n")
    assert (file.replicas, file.compute.gpus, file.compute.cpus, file.rate_limit) == (1, 0, None, None)
    assert file.batching.model_dump() == {
        "max_batch_size": 64,
        "max_timeout_ms": 0,
        "max_batch_size_in_bytes": None,
        "max_queue_size": 500,
    }


def test_merged_keys_give_way_to_a_sections_own(reading):
    assert reading(GOOD["merges"]).compute.model_dump(exclude_none=True) == {"gpus": 2, "cpus": 3}


def test_older_keys_are_put_where_they_are_now(reading):
    file = reading(GOOD["older keys"])
    assert file.compute.model_dump(exclude_none=True) == {"gpus": 1, "gpu_type": "a100_40gb", "cluster": "r1"}
    assert file.model.model_handler == "a.B"
    assert file.model.download_parameters == {"hf_path": "mosaicml/mpt-7b"}


@pytest.mark.parametrize(
    ("model_type", "task"),
    [("feature-extraction", "feature-extraction"), ("text-generation", "text-generation"), ("mpt", "text-generation")],
)
def test_a_default_models_type_is_its_task_where_it_is_one(model_type, task):
    file = parse({"name": "a", "default_model": {"model_type": model_type, "checkpoint_path": {"hf_path": "x"}}})
    assert file.default_model.task == task
    assert bool(notices(file)) == (model_type != task)


# --- mistakes --------------------------------------------------------------------------------------------------------

MODEL = "model: {model_handler: a.B}\n"
VARIABLES = "env_variables:\n  - key: TOKEN\n    value: "
INTEGRATION = "integrations:\n  - {integration_type: "
GIT_REPO = INTEGRATION + "git_repo, git_repo: hello, "
#: What the schema refuses too.
BAD = [
    ("name: a\n" + MODEL + "replicas: two\n", 3, "replicas must be an integer, not 'two'"),
    ("name: a\nreplicas: true\n" + MODEL, 2, "replicas must be an integer, not true"),
    ("name: a\nreplicas: '2'\n" + MODEL, 2, "replicas must be an integer, not '2'"),
    ("name: a\nreplicas: 0\n" + MODEL, 2, "replicas must be at least 1, not 0"),
    ("name: a\nrate_limit: -1.5\n" + MODEL, 2, "rate_limit must be greater than 0, not -1.5"),
    ("name: a\nmetadata: [a]\n" + MODEL, 2, "metadata must be a mapping of keys, not a list"),
    ("name: a\nimage: [a]\n" + MODEL, 2, "image must be text, not a list"),
    ("name: a\nimage: ''\n" + MODEL, 2, "image must not be empty"),
    ("name: a\ncompute: 4\n" + MODEL, 2, "compute must be a mapping of keys, not 4"),
    ("name: a\ncompute:\n  gpus: many\n" + MODEL, 3, "compute.gpus must be a number, not 'many'"),
    ("name: a\ncompute:\n  gpus: -1\n" + MODEL, 3, "compute.gpus must be at least 0, not -1"),
    ("name: a\ncompute:\n  cpus: 0\n" + MODEL, 3, "compute.cpus must be greater than 0, not 0"),
    ("name: a\nbatching:\n  max_batch_size: 0\n" + MODEL, 3, "batching.max_batch_size must be at least 1, not 0"),
    (
        "name: a\nbatching:\n  max_timeout_in_ms: 5\n" + MODEL,
        3,
        (
            "batching.max_timeout_in_ms is unknown; did you mean max_timeout_ms? "
            "Known keys: max_batch_size, max_timeout_ms, max_batch_size_in_bytes, max_queue_size"
        ),
    ),
    (
        "name: a\ncompute:\n  zebra: 5\n" + MODEL,
        3,
        "compute.zebra is unknown. Known keys: gpus, gpu_type, cpus, cluster, instance, nodes",
    ),
    (
        "name: a\nmodel:\n  modle_handler: a.B\n",
        3,
        (
            "model.modle_handler is unknown; did you mean model_handler? Known keys: model_handler, model_parameters, "
            "downloader, download_parameters, registered_model, version, backend, checkpoint_path, custom_model"
        ),
    ),
    (
        "name: a\nmodel: {model_handler: a/b}\n",
        2,
        "model.model_handler must be a dotted path such as package.module.Name, or a registered name, not 'a/b'",
    ),
    (
        "name: a\nmodel: {model_handler: a..b}\n",
        2,
        "model.model_handler must be a dotted path such as package.module.Name, or a registered name, not 'a..b'",
    ),
    ("name: a\n" + VARIABLES + "[hunter2]\n" + MODEL, 4, "env_variables[0].value must be text, not a list"),
    ("name: a\nenv_variables: {TOKEN: hunter2}\n" + MODEL, 2, "env_variables must be a list, not a mapping"),
    (
        "name: a\nenv_variables: [{key: A, value:hunter2}]\n" + MODEL,
        2,
        "env_variables[0].value... needs a space after its colon",
    ),
    ("name: a\nenv_variables: [hunter2]\n" + MODEL, 2, "env_variables[0] must be a mapping of keys"),
    ("name: a\nenv_variables:\n  - key: A\n" + MODEL, 3, "env_variables[0].value is missing"),
    (
        "name: a\nenv_variables:\n  - {key: A-B, value: hunter2}\n" + MODEL,
        3,
        "env_variables[0].key must be the name of a variable: letters, digits and _",
    ),
    (
        "name: a\n" + INTEGRATION + "git}\n" + MODEL,
        3,
        (
            "integrations[0].integration_type must be one of git_repo, "
            "pip_packages, apt_packages, wandb, comet_ml, not 'git'"
        ),
    ),
    ("name: a\nintegrations: [{}]\n" + MODEL, 2, "integrations[0].integration_type is missing"),
    ("name: a\n" + INTEGRATION + "git_repo}\n" + MODEL, 3, "integrations[0].git_repo is missing"),
    (
        "name: a\n" + INTEGRATION + "git_repo, git_repo: a,\n     git_brnch: b}\n" + MODEL,
        4,
        (
            "integrations[0].git_brnch is unknown; did you mean git_branch? Known keys: integration_type, git_repo, "
            "git_branch, git_commit, path, ssh_clone, host, pip_install"
        ),
    ),
    (
        "name: a\n" + INTEGRATION + "pip_packages, packages: numpy}\n" + MODEL,
        3,
        "integrations[0].packages must be a list, not 'numpy'",
    ),
    ("name: a\n", 1, "model is missing, and default_model too; one of them says what is served"),
    ("name: a\nmodle: {model_handler: a.B}\n", 2, "modle is unknown, and model is missing; did you mean model"),
    (MODEL, 1, "name is missing"),
    ("nme: a\n" + MODEL, 1, "nme is unknown, and name is missing; did you mean name"),
    (
        "name: a\n" + MODEL + "default_model: {model_type: x, checkpoint_path: {hf_path: y}}\n",
        3,
        "default_model does not go with model; keep one of them",
    ),
    (
        "name: a\nmodel: {}\n",
        2,
        (
            "model.model_parameters.task is missing: without model_handler the default handler "
            "serves, and needs text-generation or feature-extraction"
        ),
    ),
    (
        "name: a\nmodel:\n  model_parameters:\n    task: chat\n",
        4,
        "model.model_parameters.task must be text-generation or feature-extraction, not 'chat'",
    ),
    (
        "name: a\nmodel:\n  model_handler: a.B\n  version: 3\n",
        4,
        "model.version needs model.registered_model; handlers without a registry have no versions",
    ),
    (
        "name: a\nmodel:\n  registered_model: m\n  model_handler: a.B\n",
        4,
        "model.model_handler does not go with registered_model, whose versions bring their own",
    ),
    (
        "name: a\nmodel:\n  model_handler: a.B\n  download_parameters:\n    hf_path: x\n    s3_path: s3://x\n",
        6,
        "model.download_parameters.s3_path does not go with hf_path; keep one of them",
    ),
    (
        "name: a\nmodel:\n  model_handler: a.B\n  download_parameters: {hf_paht: x}\n",
        4,
        (
            "model.download_parameters.hf_paht is unknown; did you mean hf_path? "
            "Without model.downloader the keys are hf_path, s3_path, gcp_path"
        ),
    ),
    (
        "name: a\ndefault_model: {model_type: x, checkpoint_path: {}}\n",
        2,
        "default_model.checkpoint_path must hold one of hf_path, s3_path, gcp_path",
    ),
    (
        "name: a\ndefault_model: {model_type: x,\n  checkpoint_path: {hf_path: y,\n   s3_path: z}}\n",
        4,
        "default_model.checkpoint_path.s3_path does not go with hf_path; keep one of them",
    ),
    ("name: a\ndefault_model: {model_type: x}\n", 2, "default_model.checkpoint_path is missing"),
    ("name: a\ngpu_num: two\n" + MODEL, 2, "gpu_num must be a number, not 'two'"),
    ("- a\n", 1, "the file must be a mapping of keys, not a list"),
    ("just text\n", 1, "the file must be a mapping of keys, not 'just text'"),
]
#: What only reading sees.
BAD_TO_READ = [
    ("", 1, "the file is empty"),
    ("# only a comment\n", 1, "the file is empty"),
    (b"name: a\nimage: \xff\n", 2, "the file is not UTF-8 text"),
    ("name: a\nimage: b\x07\n", 2, "the file holds a control character"),
    ("name: a\nname: b\n", 2, "name is there twice, first in line 1; keep one"),
    ("name: a\ncompute:\n  gpus: 1\n  gpus: 2\n", 4, "compute.gpus is there twice, first in line 3; keep one"),
    (
        "name: a\n" + VARIABLES + "a\n  - {key: TOKEN, value: b}\n" + MODEL,
        5,
        "env_variables[1].key is TOKEN for the second time; keep one",
    ),
    ("name: '!!!'\n" + MODEL, 1, "name must hold a letter or a digit"),
    (
        "name: a\ncompute: {gpus: 1.5}\n" + MODEL,
        2,
        "compute.gpus must be a whole number above 1, not 1.5; only one GPU can be shared",
    ),
    ("name: a\ncompute: {gpus: .inf}\n" + MODEL, 2, "compute.gpus must be a finite number, not inf"),
    (
        "name: a\ngpu_num: 2\ncompute: {gpus: 1}\n" + MODEL,
        2,
        "gpu_num is the older name of compute.gpus, and they differ; keep compute.gpus",
    ),
    (
        "name: a\nmodel: {model_handler: folder/a.py}\n",
        2,
        "model.model_handler must be a dotted path and no file: folder/file.py is folder.file.NAME",
    ),
    (
        "name: a\nmetadata: {zip: 0123}\n" + MODEL,
        2,
        "metadata.zip begins with a 0, which YAML reads as octal; leave the 0 out, or quote it as text",
    ),
    ("name: a\nmetadata: {a: !!int b}\n" + MODEL, 2, "metadata.a is not what its tag says, or too long"),
    ("name: a\nmetadata: {a: !!int }\n" + MODEL, 2, "metadata.a is not what its tag says, or too long"),
    ("name: a\nmetadata: {? [b] : c}\n" + MODEL, 2, "a key of metadata is no text"),
    ("name: a\nmetadata: {<<: {[b]: c}}\n" + MODEL, 2, "a key of metadata is no text"),
    (
        "name: a\n" + VARIABLES + "!hunter2\n" + MODEL,
        4,
        "env_variables[0].value has a tag (!) that is not understood; quote text that begins with !",
    ),
    (
        "name: a\n" + VARIABLES + "*hunter2\n" + MODEL,
        4,
        (
            "the file is not valid YAML: a * begins an alias, and there is "
            "no anchor & for it; quote text that begins with *"
        ),
    ),
    (
        "name: a\ncommand: echo: x\n",
        2,
        "the file is not valid YAML: a second colon, or wrong indentation; quote text that holds a colon",
    ),
    ("name: a\n\timage: b\n", 2, "the file is not valid YAML: a tab where spaces are wanted"),
    ("name: a\nimage: 'b\n" + MODEL, 2, "the file is not valid YAML: a quote is not closed"),
    (
        "name: a\ncompute: {gpus: 1\n" + MODEL,
        3,
        "the file is not valid YAML: a bracket is not closed, or a comma is missing",
    ),
    ("name: a\n---\nname: b\n", 2, "the file is not valid YAML: a second document (---) begins"),
    ("name: a\nmetadata: &a {b: [*a]}\n", 1, "the file is nested too deeply, or an alias (*) contains itself"),
]


@pytest.mark.parametrize(("text", "line", "reason"), BAD + BAD_TO_READ, ids=lambda value: str(value)[-40:])
def test_a_mistake_is_told_with_its_line(text, line, reason, reading):
    with pytest.raises(DeploymentFileInvalid) as refused:
        reading(text)
    assert str(refused.value) == f"deployment.yaml, line {line}: {reason}."
    assert refused.value.args == ("deployment.yaml", line, reason)
    assert "hunter2" not in repr(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "document",
    [
        {1: 2},
        {"name": "\ud800"},
        {"name": "a", "model": {1: 2}},
        {"name": "a", "model": {"download_parameters": {1: 2}}},
    ],
    ids=str,
)
def test_documents_that_no_yaml_gives_are_refused_too(document):
    with pytest.raises(ConfigurationError, match=r"^the deployment: "):
        parse(document)


@pytest.mark.parametrize("text", [text for text, _, _ in BAD], ids=lambda text: text[-40:])
def test_the_schema_refuses_what_reading_refuses(text):
    assert not jsonschema.Draft7Validator(json_schema()).is_valid(yaml.safe_load(text))


def test_an_unknown_kind_of_gpu_is_told_only_where_there_are_gpus(reading):
    with pytest.raises(DeploymentFileInvalid, match=r"line 3: compute.gpu_type cannot be used: .*Known: a10, a100, "):
        reading("name: a\ncompute:\n  gpu_type: abacus\n  gpus: 1\n" + MODEL)
    with pytest.raises(
        DeploymentFileInvalid, match=r"line 3: gpu_type cannot be used: 'abacus' is no known kind of GPU"
    ):
        reading("name: a\ngpu_num: 1\ngpu_type: abacus\n" + MODEL)


def test_the_first_of_several_mistakes_is_told(reading):
    text = "name: a\nmodel:\n  model_handler: a.py\nbatching:\n  max_batch_size: 0\nreplicas: two\n"
    with pytest.raises(DeploymentFileInvalid, match="line 3: "):
        reading(text)
    with pytest.raises(DeploymentFileInvalid, match="line 5: "):
        reading(text.replace(".py", ".b"))
    with pytest.raises(DeploymentFileInvalid, match="line 6: "):
        reading(text.replace(".py", ".b").replace("size: 0", "size: 1"))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('command: export TOKEN="hunter2\n', 2, "command holds an export whose quote is not closed"),
        ("command: |\n  export A='1\n  export B=2\n", 2, "command holds an export whose quote is not closed"),
        (
            GIT_REPO + 'pip_install: "-e \'."}\n',
            3,
            "integrations[0].pip_install must not end in a quote, or with a backslash",
        ),
        (GIT_REPO + "path: ..}\n", 3, "integrations[0].path must end with the name of a folder, not '..'"),
        (GIT_REPO + "path: /}\n", 3, "integrations[0].path must end with the name of a folder, not '/'"),
        (GIT_REPO + "path: ./}\n", 3, "integrations[0].path must end with the name of a folder, not './'"),
    ],
)
def test_what_a_shell_or_a_folder_could_not_be_is_told_with_its_line(text, line, reason, reading):
    with pytest.raises(DeploymentFileInvalid) as refused:
        reading("name: a\n" + text + MODEL)
    assert refused.value.args == ("deployment.yaml", line, reason)


@pytest.mark.parametrize(
    "text",
    [
        "command: |\n  export A='1\n  2'\n  cat <<END\n  it's\n  END\n",
        'command: "export A=1 \\\\"\n',
        "command: export A=1  # it's one\n",
        GIT_REPO + "path: /code/hello, pip_install: \"-e '.[dev]'\"}\n",
    ],
)
def test_what_a_shell_and_a_folder_can_be_is_read(text, reading):
    assert reading("name: a\n" + text + MODEL).name == "a"


def test_aliases_that_multiply_are_refused(reading):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(DeploymentFileInvalid, match="holds more than 100000 values"):
        reading("\n".join(lines))


def test_what_is_no_file_is_a_plain_error(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none.yaml cannot be read: No such file or directory\.$"):
        read(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match=r"^record 7: replicas must be an integer, not 'two'\.$"):
        parse({"name": "a", "replicas": "two", "model": {"model_handler": "a.B"}}, "record 7")


# --- what is said, what is hidden ------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_said_once(reading):
    assert notices(reading(EVERYTHING)) == [
        "compute.cluster is not used: replicas go where Ray finds room for them.",
        "compute.instance is not used: replicas go where Ray finds room for them.",
        "compute.nodes is not used: replicas go where Ray finds room for them.",
        "model.backend is not used; the handler decides how the model runs.",
        "The integration apt_packages is not used; install them on the nodes.",
        "The integration wandb is not used; log from the handler, with its keys in env_variables.",
        "The integration comet_ml is not used; log from the handler, with its keys in env_variables.",
        "image is not used: replicas run in this machine's Python; --use-image runs them in it.",
        "command is not run, but for its `export NAME=VALUE` lines; --allow-command runs it.",
    ]
    assert notices(reading(GOOD["older keys"])) == [
        "gpu_num is an older key; write compute.gpus.",
        "gpu_type is an older key; write compute.gpu_type.",
        "cluster is an older key; write compute.cluster.",
        "model.custom_model.model_handler is an older key; write model.model_handler.",
        "model.checkpoint_path.hf_path is an older key; write model.download_parameters.hf_path.",
        "compute.cluster is not used: replicas go where Ray finds room for them.",
    ]
    assert notices(reading(GOOD["unknown keys"])) == [
        "unknown fields deployment_id, replica are not used.",
        "replica is not used; did you mean replicas?",
    ]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("My Model_v1.0", "my-model-v1-0"),
        ("-a-", "a"),
        ("a" * 80, "a" * 63),
        ("b" * 62 + "--c", "b" * 62),
        ("Ünï", "n"),
    ],
)
def test_a_name_that_is_none_is_converted_and_that_is_said(written, name, reading):
    file = reading(f"name: {written}\n{MODEL}")
    assert file.name == name
    assert any(f"is named {name}:" in each for each in notices(file))


def test_what_is_shown_holds_no_secret(reading):
    file = reading(EVERYTHING + "x-unknown: {secret: hunter2}\nenv_variable: [{key: A, value: hunter2}]\n")
    shown = masked(file)
    assert "hunter2" not in yaml.safe_dump(shown) + json.dumps(shown)
    assert "0123" not in str(shown["env_variables"])
    assert shown["env_variables"][0] == {"key": "AWS_SECRET_ACCESS_KEY", "value": "***"}
    assert shown["model"]["model_parameters"] == {"hf_token": "***", "max_new_tokens": 256, "temperature": 0.001}
    assert shown["integrations"][0]["git_repo"] == "https://example.com/org/repo"
    assert "OTHER=***" in shown["command"]
    assert "page=2" in shown["command"]
    assert shown["compute"]["gpus"] == 0.5
    assert "0123'" not in repr(file)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("export MYSQL_PWD=hunter2", "export MYSQL_PWD=***"),
        ("export A='hunter2 hunter2' B=\"hunter2 \\\" hunter2\" C=hunter\\ 2", "export A=*** B=*** C=***"),
        ("export A=hunter'2 'hunter2 && B=hunter2; C=hunter2 run", "export A=*** && B=***; C=*** run"),
        ("A=$(echo hunter2 hunter2) B=`cat hunter2` C=(hunter2 hunter2) D+=hunter2", "A=*** B=*** C=*** D+=***"),
        ('export A="hunter2\nhunter2"\necho done', "export A=***\necho done"),
        ("A='hunter2 hunter2", "A=***"),
        ("curl -u ann:hunter2 http://x", "curl -u *** http://x"),
        ("curl -su 'ann:hunter 2' x", "curl -su *** x"),
        ("curl --user=ann:hunter2 --proxy-user \"ann:hunter2\" x", "curl --user=*** --proxy-user *** x"),
        ("wandb login hunter2 && echo done", "wandb login *** && echo done"),
        ("wandb login --relogin hunter2\necho done", "wandb login ***\necho done"),
        ("run --db-pass hunter2 --auth=hunter2 pwd: hunter2", "run --db-pass *** --auth=*** pwd: ***"),
        ("python -u serve.py --name=a ; true", "python -u serve.py --name=a ; true"),
    ],
)  # fmt: skip
def test_a_command_is_shown_without_what_it_sets_and_who_signs_in(command, shown, reading):
    assert masked(reading(f"{MODEL}name: a\ncommand: {json.dumps(command)}\n"))["command"] == shown


def test_parameters_that_are_named_like_secrets_are_not_shown(reading):
    secrets = dict.fromkeys(
        ("PASS", "PGPASS", "db_pass", "pwd", "auth", "http_auth", "bearer", "bearerToken"), "hunter2"
    )
    settings = {"author": "ann", "passes": "two", "path": "/x", "num_passes": 3, "bypass_cache": True, "compute": "no"}
    parameters = json.dumps({**secrets, **settings})
    file = reading(f"name: a\nmodel: {{model_handler: a.B, model_parameters: {parameters}}}\n")
    assert masked(file)["model"]["model_parameters"] == dict.fromkeys(secrets, "***") | settings


# --- tables ----------------------------------------------------------------------------------------------------------

#: What Ray calls the cards of a node that its constants do not name.
BESIDES = {"A10", "B200", "H200", "L40S"}


def test_kinds_of_gpu_are_rays():
    constants = {name: value for name, value in vars(ray.util.accelerators).items() if name.isupper()}
    assert set(ACCELERATOR_TYPES.values()) - set(constants.values()) == BESIDES
    for name, value in constants.items():
        if name.startswith("NVIDIA_"):
            assert accelerator_type(value) == value


@pytest.mark.parametrize(
    ("written", "rays"),
    [("a100_40gb", "A100"), ("a100_80gb", "A100"), ("H100-80GB", "H100"), ("v100_16gb", "V100"), ("a10", "A10"),
     ("a10g", "A10G"), ("T4", "T4"), ("h200", "H200"), ("AMD-Instinct-MI100", "AMD-Instinct-MI100")],
)  # fmt: skip
def test_kinds_of_gpu_are_found(written, rays):
    assert accelerator_type(written) == rays


def test_the_schema_that_is_checked_in_is_current():
    checked_in = ROOT / "registry_serve" / "deployment_file" / "deployment.schema.json"
    assert checked_in.read_text() == json.dumps(json_schema(), indent=2) + "\n"
    jsonschema.Draft7Validator.check_schema(json_schema())


def documented_fields(model=DeploymentFile, prefix=""):
    """Yield path and field of everything that a file may hold."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for kind, inside in sections(field.annotation, prefix + name):
            yield from documented_fields(kind, inside + ".")


def sections(annotation, path):
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation, path
    for part in get_args(annotation):
        yield from sections(part, f"{path}[]" if get_origin(annotation) is list else path)


def test_every_field_is_described_and_documented():
    rows = [line for line in (ROOT / "docs" / "deployment_file.md").read_text().splitlines() if line.startswith("| `")]
    found = list(documented_fields())
    assert len(found) > 45
    described_elsewhere = "model.checkpoint_path."
    for path, field in found:
        assert field.description, path
        if path.startswith(described_elsewhere):
            continue
        row = next((row for row in rows if row.startswith(f"| `{path}` |") and field.description in row), None)
        assert row, f"docs/deployment_file.md says nothing of {path}, or something else"
        default = field.get_default()
        if isinstance(default, (bool, int, float)):
            assert f"| `{json.dumps(default)}` |" in row
        elif isinstance(default, str):
            assert f"| `{default}` |" in row
        assert ("**required**" in row) == field.is_required()


def test_every_kind_of_gpu_is_documented():
    page = (ROOT / "docs" / "deployment_file.md").read_text()
    assert [name for name in ACCELERATOR_TYPES if f"`{name}`" not in page] == []
