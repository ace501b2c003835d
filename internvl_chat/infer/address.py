"""Where a server of ours listens."""

from __future__ import annotations

import ipaddress
import socket

from internvl_chat.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether who listens at this address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen_at(host: str, port: int) -> socket.socket:
    """A socket with its address (``port`` 0: any free one), not listening yet. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        place = socket.socket(family, kind, protocol)
        try:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(address)
        except (OSError, OverflowError):
            place.close()
            raise
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened at ({getattr(error, 'strerror', None) or error}); another "
            "server may be there: choose another --port, 0 takes any free one"
        ) from error
    return place
