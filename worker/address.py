"""How this host is reached by the other hosts of a job."""

import socket
from urllib.parse import urlsplit

import psutil

from shared.settings import Settings

LOOPBACK = "127.0.0.1"
_ANY_PORT = 9  # nothing is sent: a UDP socket is only asked which way it would take


def own_address(settings: Settings) -> str:
    """`EPOCHCAST_ADDRESS`, else the address by which this host reaches the broker, where all hosts must get to."""
    if settings.address is not None:
        return settings.address
    broker = urlsplit(settings.broker_url.get_secret_value()).hostname
    return LOOPBACK if broker is None else address_towards(broker)


def meeting_address(settings: Settings, own: str, others: list[str]) -> str:
    """Where rank 0 listens: `own`, unless that is this machine's loopback and another host is elsewhere."""
    elsewhere = [address for address in others if not _is_loopback(address)]
    if settings.address is None and _is_loopback(own) and elsewhere:
        return address_towards(elsewhere[0])
    return own


def own_interface(settings: Settings, master: str) -> str | None:
    """The interface on which this host meets the others, who meet at `master`."""
    own = own_address(settings)
    return interface_of(address_towards(master) if _is_loopback(own) and not _is_loopback(master) else own)


def address_towards(host: str) -> str:
    """The address that packets to `host` would leave from; loopback when there is no way to it."""
    try:
        found = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)
    except OSError:
        return LOOPBACK
    # IPv4 first: what a rank 0 listens on must be one address for all.
    for family, kind, protocol, _, target in sorted(found, key=lambda one: one[0] != socket.AF_INET):
        with socket.socket(family, kind, protocol) as asked:
            try:
                asked.connect(target)
                return str(asked.getsockname()[0])
            except OSError:
                continue
    return LOOPBACK


def interface_of(address: str) -> str | None:
    """The network interface that has `address`; None when none has (a name, another host's)."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return str(name)
    return "lo" if _is_loopback(address) else None


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "localhost")
