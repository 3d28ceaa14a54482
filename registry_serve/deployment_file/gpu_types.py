"""Kinds of GPU, as deployment files and as Ray name them."""

from __future__ import annotations

import re

from registry_serve.errors import ConfigurationError

#: Name in a deployment file, without the memory's size -> Ray's accelerator type. Most are in
#: ``ray.util.accelerators``; the others are what Ray calls a node's cards when it finds them.
ACCELERATOR_TYPES = {
    "a10": "A10",
    "a100": "A100",
    "a10g": "A10G",
    "b200": "B200",
    "h100": "H100",
    "h200": "H200",
    "k80": "K80",
    "l4": "L4",
    "l40s": "L40S",
    "p100": "P100",
    "p4": "P4",
    "t4": "T4",
    "v100": "V100",
    "mi100": "AMD-Instinct-MI100",
    "mi210": "AMD-Instinct-MI210",
    "mi250": "AMD-Instinct-MI250X-MI250",
    "max_1100": "Intel-GPU-Max-1100",
    "max_1550": "Intel-GPU-Max-1550",
}

_RAYS_OWN = {name.lower(): name for name in ACCELERATOR_TYPES.values()}
_MEMORY = re.compile(r"[_-][0-9]+gb?$")


def accelerator_type(gpu_type: str) -> str:
    """Return Ray's name of what a deployment file calls ``a100_40gb``, ``A100`` or as Ray does.

    Ray does not tell cards of the same kind apart by their memory.

    Raises:
        ConfigurationError: a kind that is not in the table.
    """
    kind = _MEMORY.sub("", gpu_type.strip().lower())
    found = ACCELERATOR_TYPES.get(kind) or _RAYS_OWN.get(kind)
    if found is None:
        known = ", ".join(ACCELERATOR_TYPES)
        raise ConfigurationError(
            f"{gpu_type!r} is no known kind of GPU. Known: {known}; a size such as _40gb may follow."
        )
    return found
