"""The process that holds the background cluster: ``python -m registry_serve.rollout.head``.

It is a process of its own, with a session of its own, which outlives the command that started it. It keeps Ray and
Serve alive, and does what later commands ask for by its line.

In: one JSON object with ``host``, ``port``, ``socket`` and ``key``.
Out: one JSON object per line: ``{"doing": ...}`` while it starts, then ``{"address": ..., "session": ...}``.
"""

from __future__ import annotations

import json
import os
import sys
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import ray
from ray import serve

from registry_serve.rollout.line import answer

#: Requests and answers do not go through Ray's object store; Ray's own default takes a third of the memory.
_OBJECT_STORE_BYTES = 256 * 2**20
#: CPUs are Ray's book-keeping: replicas that share cores are slower, but not refused. How many replicas there will be
#: is not known yet.
_CPUS = 10_000


def main() -> None:
    """Serve until this process is ended."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints is no message of ours
    asked = json.loads(sys.stdin.readline())

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=told, flush=True)

    _keep_private()
    tell(doing="Starting Ray")
    started: Any = ray.init(
        address="local",
        num_cpus=_CPUS,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    tell(doing="Starting Ray Serve")
    serve.start(
        http_options={"host": asked["host"], "port": asked["port"]},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    with Listener(asked["socket"], "AF_UNIX", authkey=bytes.fromhex(asked["key"])) as listener:
        tell(address=started.address_info["gcs_address"], session=started.address_info["session_dir"])
        told.close()
        answer(listener)


def _keep_private() -> None:
    """Let nobody else read what Ray's processes write: the replicas' variables, their code, Ray's own key."""
    os.umask(0o077)  # Ray opens its folders to everybody, again with each process that starts, but not its files
    # It may be older than this process. One that RAY_AUTH_TOKEN_PATH names is not Ray's.
    key = Path.home() / ".ray" / "auth_token"
    if key.is_file():
        key.chmod(0o600)


if __name__ == "__main__":
    main()
