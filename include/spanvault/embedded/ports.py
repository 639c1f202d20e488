"""Free TCP ports on 127.0.0.1."""

from __future__ import annotations

import random
import socket

from spanvault.errors import Retryable

LOOPBACK = "127.0.0.1"

# Below what Linux (from 32768), macOS and IANA (from 49152) hand out to outgoing connections: nothing takes such a port
# by chance between our look and the server's bind.
_FIRST, _LAST = 20000, 32000


def free_ports(count: int) -> list[int]:
    """`count` different ports that nothing listens on right now. Raises Retryable if none can be found."""
    generator = random.SystemRandom()
    found: list[int] = []
    for _ in range(count * 200):
        port = generator.randrange(_FIRST, _LAST)
        if port not in found and is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise Retryable(f"No {count} free ports on {LOOPBACK} between {_FIRST} and {_LAST}.")


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
