"""What a guest is told through fw_cfg before there is a connection; read by ``guest/voidbox_guest/boot.py``."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from voidbox_lab.wire.protocol import BOOT_DATA_SIZE


def boot_data(hostname: str, control_port: int, secret: bytes) -> bytes:
    """Boot data of one box, with a machine-id and entropy that no other has; `BOOT_DATA_SIZE` bytes."""
    return _padded(
        {
            "version": 1,
            "secret": secret.hex(),
            "hostname": hostname,
            "machine_id": secrets.token_hex(16),
            "control_port": control_port,
            "entropy": secrets.token_hex(64),
            "time_ns": time.time_ns(),
        }
    )


def _padded(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode().ljust(BOOT_DATA_SIZE)


TEMPLATE_BOOT_DATA = _padded({"version": 1, "template": True, "secret": "0" * 64})
"""What makes a guest a template: zeros for a secret, and no identity."""
