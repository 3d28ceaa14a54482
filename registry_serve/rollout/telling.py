"""Where what happens is told if nobody listens: in the log."""

from __future__ import annotations

import logging

logger = logging.getLogger("registry_serve.rollout")


def log(doing: str) -> None:
    """Log what happens."""
    logger.info("%s.", doing)
