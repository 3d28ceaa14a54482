"""Where a replica's log goes: into the file that Serve keeps for it."""

from __future__ import annotations

import logging
import traceback


class ServesHandlers(logging.Handler):
    """Hands records on to whatever handles Serve's own, ``ray.serve``, at the moment.

    Serve replaces ``print`` in replicas by one that writes a tuple where Python's formatter writes a line of a trace,
    so traces are written out before.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        if record.exc_info and not record.exc_text:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        for handler in logging.getLogger("ray.serve").handlers:
            handler.handle(record)


def log_where_serve_does() -> None:
    """Write this package's log into the replica's own file: nobody else takes what a library logs in a replica."""
    ours = logging.getLogger("registry_serve")
    ours.handlers = [ServesHandlers()]
    ours.propagate = False
    ours.setLevel(logging.INFO)
