"""Builds `TF_CONFIG`, by which TensorFlow's workers find each other."""

import contextlib
import json
import socket
from collections.abc import Sequence


def free_addresses(count: int) -> list[str]:
    """Returns loopback addresses with ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def tf_config(addresses: Sequence[str], index: int) -> str:
    """Returns the value of `TF_CONFIG` for worker `index`."""
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    )
