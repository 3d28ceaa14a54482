"""Serve one application on a Ray cluster of its own: ``python -m benchmarks.apps.cluster MODULE:BUILDER PORT ...``.

Further arguments are ``NAME=VALUE``; the builder gets them as keywords.
"""

import importlib
import os
import signal
import sys

import ray
from ray import serve


def main(application: str, port: str, *arguments: str) -> None:
    """Serve until somebody ends this process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    module, builder = application.split(":")
    keywords = dict(argument.split("=", 1) for argument in arguments)
    # As registry_serve.cluster does it, so that the same processes run beside the replica.
    ray.init(
        address="local",
        num_cpus=os.cpu_count() or 1,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": int(port)},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(getattr(importlib.import_module(module), builder)(**keywords))
        signal.pause()
    except KeyboardInterrupt:
        sys.stdout.write("Stopping.\n")
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
