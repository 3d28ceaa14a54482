"""A deployment file -> a running deployment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError
from ray import cloudpickle

from registry_serve.deployment_file import DeploymentFile, notices, parse, read
from registry_serve.errors import ConfigurationError
from registry_serve.protocols.gate import keys_in
from registry_serve.rollout import records
from registry_serve.rollout.applications import build
from registry_serve.rollout.background import start
from registry_serve.rollout.clusters import Cluster, connected
from registry_serve.rollout.code import gather
from registry_serve.rollout.doors import front_door
from registry_serve.rollout.ending import refuse_elsewhere, take_off
from registry_serve.rollout.records import Order, Record
from registry_serve.rollout.running import RunningDeployment, of
from registry_serve.rollout.serving import Parcel, look, put
from registry_serve.rollout.serving import wait as until_running
from registry_serve.rollout.sources import source_of
from registry_serve.rollout.state import changing
from registry_serve.rollout.statuses import DeploymentStatus, status
from registry_serve.rollout.telling import log
from registry_serve.rollout.variables import only_exports

Tell = Callable[[str], None]


def deploy(
    source: str | Path | Mapping[str, Any],
    *,
    replicas: int | None = None,
    gpus: float | None = None,
    gpu_type: str | None = None,
    image: str | None = None,
    use_image: bool = False,
    allow_command: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | Path | None = None,
    on_progress: Tell = log,
    wait: bool = True,
) -> RunningDeployment:
    """Deploy what a file describes, and return once it answers; a deployment of the same name is replaced.

        deploy("deployment.yaml").predict(["prompt 1", "prompt 2"])

    Where this process is connected to Ray, it runs on that cluster; else on the one that ``RAY_ADDRESS`` names; else on
    one in the background of this machine, which the first deployment starts and the last one ends with. It answers
    until it is stopped or deleted, also when this process has ended.

    A file is code: whatever it names runs with your rights, on every node that has a replica.

    Args:
        source: path of the file, or what would stand in it. Paths in it are relative to its folder, or else to the
            current one.
        replicas: instead of the file's.
        gpus: instead of the file's, for each replica.
        gpu_type: instead of the file's.
        image: instead of the file's.
        use_image: run the replicas in that container image.
        allow_command: run the file's ``command`` in each replica, by a shell, before its Python starts.
        host: to listen on, if a cluster is started: ``0.0.0.0`` lets others than this machine in.
        port: the same.
        api_key_file: file with one API key per line, on every node; requests then need one of them.
        on_progress: hears, in short sentences, what is being done and what of the file is not used.
        wait: until it answers; else return as soon as Ray Serve has it.

    Raises:
        DeploymentFileInvalid: the file has a mistake.
        ResourcesMissing: the cluster has not the GPUs that it asks for.
        ConfigurationError: it cannot be started; the message is one line that says why. What it was to replace goes on.
    """
    file, folder = _read(source)
    keys = None if api_key_file is None else str(Path(api_key_file).absolute())
    order = Order(
        replicas=replicas,
        gpus=gpus,
        gpu_type=gpu_type,
        image=image,
        use_image=use_image,
        allow_command=allow_command,
        host=host,
        port=port,
        api_key_file=keys,
    )
    if keys is not None:
        keys_in(keys)
    for notice in _notices(file, order):
        on_progress(notice)
    draft = _draft(file, folder, order, datetime.now(timezone.utc), on_progress)
    return of(_roll_out(lambda: draft, on_progress, wait))


def update(
    name: str, *, replicas: int | None = None, image: str | None = None, on_progress: Tell = log
) -> DeploymentStatus:
    """Change a deployment, or bring a stopped one back, and return how it is once it answers.

    Its replicas are replaced, as many at a time as there is room for beside them; requests are answered meanwhile where
    there is room for one.

    Args:
        name: of the deployment.
        replicas: how many there shall be; as before if not given.
        image: the container image, which only matters if it was deployed with ``use_image``.
        on_progress: hears what is being done.

    Raises:
        DeploymentNotFound: there is none of that name.
        ConfigurationError: it cannot be started so; what was there before goes on.
    """
    changes = {key: value for key, value in {"replicas": replicas, "image": image}.items() if value is not None}

    def draft() -> Record:
        record = records.get(name)
        order = Order(**{**record.order.model_dump(), **changes})
        return record.model_copy(update={"order": order, "deployed": datetime.now(timezone.utc), "stopped": False})

    _roll_out(draft, on_progress, wait=True)
    return status(name)


def _read(source: str | Path | Mapping[str, Any]) -> tuple[DeploymentFile, Path]:
    if isinstance(source, Mapping):
        return parse(source), Path.cwd()
    return read(source), Path(source).absolute().parent


def _notices(file: DeploymentFile, order: Order) -> list[str]:
    honoured = order.allow_command or only_exports(file.command)
    said = notices(file, use_image=order.use_image, allow_command=honoured)
    if order.image is not None and not order.use_image and not file.image:
        said.append("image is not used; with --use-image the replicas run in it.")
    return said


def _draft(file: DeploymentFile, folder: Path, order: Order, now: datetime, tell: Tell) -> Record:
    try:
        written = file.model_dump(mode="json", exclude_none=True)
    except PydanticSerializationError as error:
        raise ConfigurationError(f"The deployment holds what no file could hold: {error}.") from None
    return Record(
        name=file.name,
        file=written,
        folder=str(folder),
        order=order,
        code=gather(file, folder, tell),
        source=source_of(file),
        created=now,
        deployed=now,
    )


def _roll_out(drafted: Callable[[], Record], tell: Tell, wait: bool) -> Record:
    """Bring a deployment up, and take it back if that fails.

    What is ``drafted`` from an earlier record is so while no other command changes anything.
    """
    with ExitStack() as connection:
        with changing(tell):
            draft = _with_code(drafted(), tell)
            kept = records.find(draft.name)
            try:
                cluster, working_dir = _join(connection, draft, tell)
                before = _earlier(draft.name, kept, cluster, tell)
                record = _hand_over(draft, cluster, working_dir, before, tell)
            except BaseException:
                connection.close()
                with connected(tell, end_unused=True):
                    pass
                raise
        if not wait:
            return record
        with _left_loading(record.name, tell):
            try:
                cluster.ask(until_running, record, tell=tell)
            except ConfigurationError as error:
                connection.close()
                raise _taken_back(record, before, kept, error, tell) from None
            tell("Waiting for the first answer")
            of(record).wait_until_answering()
    return record


@contextmanager
def _left_loading(name: str, tell: Tell) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        tell(f"{name} goes on loading: registry-serve describe deployment {name}, or delete deployment {name}.")
        raise


def _with_code(record: Record, tell: Tell) -> Record:
    if records.spare(record):
        return record
    return record.model_copy(update={"code": gather(record.parsed, Path(record.folder), tell)})


def _join(connection: ExitStack, draft: Record, tell: Tell) -> tuple[Cluster, str | None]:
    """Connect to a cluster, started if need be; return where its replicas find their code, too."""
    cluster = connection.enter_context(connected(tell))
    if cluster is None:
        start(tell, draft.order.host, draft.order.port)
        cluster = connection.enter_context(connected(tell))
        assert cluster is not None
    archive = draft.code.archive
    if archive is None or cluster.on_this_machine:
        return cluster, None if archive is None else Path(archive).as_uri()
    if not cluster.ours:
        raise ConfigurationError(
            "This process is connected to a Ray cluster of several machines, so the code that the file's integrations "
            "name cannot be uploaded any more. Call ray.shutdown() before, and let RAY_ADDRESS name the cluster."
        )
    connection.close()
    uploading = connection.enter_context(connected(tell, working_dir=archive))
    assert uploading is not None
    return uploading, None


def _earlier(name: str, kept: Record | None, cluster: Cluster, tell: Tell) -> Record | None:
    """Return what is deployed under that name on that cluster now, given what is known under it.

    Raises:
        ConfigurationError: an application that is none of ours, or ours on another cluster.
    """
    if kept is not None:
        refuse_elsewhere(kept, cluster)
    if name not in cluster.ask(look, tell=tell):
        return None
    if kept is None or kept.stopped or kept.session != cluster.session:
        raise ConfigurationError(f"The cluster serves another application {name!r} already. Choose another name.")
    records.spare(kept)  # it may have to be brought back
    return kept


def _hand_over(draft: Record, cluster: Cluster, working_dir: str | None, before: Record | None, tell: Tell) -> Record:
    """Write down what an application is, and give it to Serve."""
    door = front_door(cluster, draft.order, tell)
    built = build(draft, working_dir)
    pickled = cloudpickle.dumps(built.deployment)  # type: ignore[no-untyped-call]
    parcel = Parcel(draft.name, pickled, draft.replicas, built.resources, updates=before is not None)
    record = draft.model_copy(
        update={
            "serves": built.serves,
            "deployment": built.deployment.name,
            "url": f"{door}/{draft.name}",
            "address": cluster.address,
            "session": cluster.session,
            "created": draft.created if before is None else before.created,
        }
    )
    kept = records.find(draft.name)
    records.keep(record)  # before Serve has it: who is interrupted between the two can still name it
    try:
        cluster.ask(put, parcel, tell=tell)
    except Exception:
        records.restore(draft.name, kept)
        raise
    return record


def _taken_back(
    record: Record, before: Record | None, kept: Record | None, error: ConfigurationError, tell: Tell
) -> ConfigurationError:
    """Undo what failed, if no other command did something with it meanwhile; return the error to raise.

    Args:
        record: of what failed.
        before: of what was running under that name.
        kept: of what was known under that name, running or not.
        error: why it failed.
        tell: hears what happens.
    """
    with changing(tell):
        there = records.find(record.name)
        if there is None or there.stopped:
            return ConfigurationError(f"{record.name} was {'deleted' if there is None else 'stopped'} meanwhile.")
        if there.deployed != record.deployed:
            return ConfigurationError(f"{record.name} was deployed anew meanwhile, and that is left alone.")
        if before is None:
            take_off(record, tell)
            records.restore(record.name, kept)
            return error
        with ExitStack() as connection:
            before = _with_code(before, tell)
            cluster, working_dir = _join(connection, before, tell)
            _hand_over(before, cluster, working_dir, record, tell)
    return ConfigurationError(f"{error} What was deployed before goes on.")
