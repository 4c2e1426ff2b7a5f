"""Who the workers are, as TensorFlow is told."""

import contextlib
import json
import socket
from collections.abc import Sequence


def free_addresses(count: int) -> list[str]:
    """Of loopback, with ports that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def tf_config(addresses: Sequence[str], index: int) -> str:
    """TF_CONFIG of a worker."""
    return json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    )
