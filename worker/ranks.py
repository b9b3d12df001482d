"""The processes of one attempt on one host among all of its processes, and what torchrun would tell each of them."""

import random
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from epochcast.jobs import Resources

LOOPBACK = "127.0.0.1"
# Below what a kernel gives to outgoing connections, as far as it says so: nobody takes such a port by accident
# between our look and the moment when rank 0 listens.
_PORTS = range(20_000, 30_000)
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Ranks:
    """`local` processes on this host, which is number `node` of `nodes`. `master`: where rank 0 listens.

    `ranked`: whether they are told. A single process isn't: a plain script would take itself for one of several.
    """

    local: int = 1
    node: int = 0
    nodes: int = 1
    ranked: bool = False
    master: tuple[str, int] | None = None

    @classmethod
    def of(cls, resources: Resources, node: int = 0) -> Self:
        """As a job's resources say: a process for each GPU, or `procs_per_node` (also 1: torchrun's names for one)."""
        several = resources.nodes * resources.local_processes > 1
        return cls(
            resources.local_processes, node, resources.nodes, ranked=several or resources.procs_per_node is not None
        )

    @property
    def first(self) -> int:
        """The rank of this host's first process."""
        return self.node * self.local

    @property
    def here(self) -> range:
        """The ranks on this host."""
        return range(self.first, self.first + self.local)

    @property
    def world(self) -> int:
        return self.nodes * self.local

    def meeting_at(self, address: str, port: int) -> "Ranks":
        """With the place where rank 0 listens."""
        return replace(self, master=(address, port))

    def environment(self, run_id: str) -> dict[str, str]:
        """What all processes of this host are told, by the names that torchrun uses; the launcher adds each one's."""
        if not self.ranked:
            return {}
        assert self.master is not None
        address, port = self.master
        told = {
            "WORLD_SIZE": str(self.world),
            "LOCAL_WORLD_SIZE": str(self.local),
            "GROUP_RANK": str(self.node),
            "GROUP_WORLD_SIZE": str(self.nodes),
            "ROLE_NAME": "default",
            "ROLE_WORLD_SIZE": str(self.world),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": run_id,
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            # Rank 0 keeps the store itself: no process of ours takes part in the training.
            "TORCHELASTIC_USE_AGENT_STORE": "False",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        }
        if self.nodes == 1:
            # A host whose own name leads nowhere (or to 127.0.1.1) must not matter to processes on one host.
            told["GLOO_SOCKET_IFNAME"] = "lo"
        return told


def free_port(address: str = LOOPBACK) -> int:
    """A port on which rank 0 can listen at `address`. Raises OSError when none is found."""
    lowest_outgoing = _lowest_outgoing_port()
    candidates = [port for port in _PORTS if port < lowest_outgoing] or list(range(1_024, lowest_outgoing)) or [0]
    error: OSError | None = None
    for _ in range(_TRIES):
        with socket.socket() as probe:
            try:
                probe.bind((address, random.SystemRandom().choice(candidates)))
                return int(probe.getsockname()[1])
            except OSError as taken:
                error = taken
    raise OSError(f"no free port for the ranks to meet at was found on {address}: {error}")


def _lowest_outgoing_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
