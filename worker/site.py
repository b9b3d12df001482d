"""What an attempt has on one host: its folder, its socket, its process tree; and how they come to run."""

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from epochcast.jobs import JobError
from shared.artifacts import ArtifactsUnavailable
from shared.attempt import LeaseLost
from shared.claims import Claim
from shared.settings import Settings
from worker import gpus
from worker.address import own_interface
from worker.agent_line import AgentDraining, AgentUnavailable
from worker.attempt_socket import AttemptSocket
from worker.bundles import CodeRejected, check_entrypoint, place_bundle
from worker.connections import Connections
from worker.lines import Level
from worker.outcome import Cut, Ending
from worker.predecessor import end_leftovers
from worker.ranks import LOOPBACK, Ranks, free_port
from worker.requests import Requests
from worker.tree import Tree
from worker.warm_start import starts_warm
from worker.workspace import fetch_checkpoints, make_workspace, trainer_environment, write_job_file

START_S = 30.0
GONE_S = 10.0
_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)


class AttemptFailed(Exception):
    """Raised when this host could not go on with an attempt (disk full, no descriptors) and its tree is gone."""


class Site:
    """Made for one claim; `closing` lets go of its parts. Raises OSError (disk full, not writable)."""

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        claimed: Claim,
        requests: Requests,
        closing: contextlib.ExitStack,
    ) -> None:
        self._settings = settings
        self._connections = connections
        self._claim = claimed
        self._requests = requests
        job, membership = claimed.job, claimed.membership
        self.workspace = make_workspace(settings, claimed)
        closing.callback(self.workspace.remove)
        self.socket = AttemptSocket(self.workspace.root)
        closing.callback(self.socket.close)
        self.ranks = Ranks.of(job.spec.resources, membership.member if membership is not None else 0)
        self.tree = Tree(settings.work_dir, job.job_id, self.ranks)
        closing.callback(self.tree.close)
        self._met: Ranks | None = None
        self.resumed_from: object = None
        """The artifact of the checkpoint that this host's ranks are given; None: they begin at the beginning."""

    def start(self, trainer: Sequence[str], licence_until: float, say: Callable[[Level, str], None]) -> Ending | None:
        """Starts the trainers where the last checkpoint left off; how it ended when they can't be started.

        `say`: what the job's log should hear. Raises LeaseLost, OSError.
        """
        try:
            self._start(trainer, licence_until, say)
            return None
        except AgentDraining:
            return Ending.before_start(Cut.DRAINED)
        except ArtifactsUnavailable as error:
            return Ending.before_start(Cut.STORE, str(error))
        except CodeRejected as error:
            host = self._settings.host_name
            failure = JobError(type="code_rejected", message=str(error), detail=error.detail, host=host)
            return Ending(None, None, None, failure, None, finished_all_epochs=False)
        except (AgentUnavailable, gpus.GpuBusy) as error:
            return Ending.before_start(Cut.PLATFORM, f"the trainer could not be started: {error}")

    def _start(self, trainer: Sequence[str], licence_until: float, say: Callable[[Level, str], None]) -> None:
        job, settings, store = self._claim.job, self._settings, self._connections.store
        if not end_leftovers(self._connections.database, job, settings.host_name):
            raise AgentUnavailable("an earlier attempt's processes on this host would not end")
        gpus.wait_free(self._claim.gpus, job.spec.resources.gpu_memory_gib)
        if job.spec.bundle is not None:
            place_bundle(job.spec.bundle, store, settings.work_dir, self.workspace.work)
            check_entrypoint(self.workspace.work, job.spec.entrypoint or "")
        checkpoints, complaints = fetch_checkpoints(self.workspace, self._claim, store)
        for complaint in complaints:
            say("WARNING", complaint)
        self.resumed_from = checkpoints[0]["artifact_id"] if checkpoints else None
        job_file = write_job_file(self.workspace, job, checkpoints)
        self._met = ranks = self._meeting()
        env = trainer_environment(self.workspace, self._claim, self.socket.path, job_file, ranks)
        if self._requests.has(Cut.LEASE_LOST):
            raise LeaseLost(f"job {job.job_id}: while it was prepared")
        warm = starts_warm(trainer, job.spec, self.workspace.work)
        self.tree.start(list(trainer), self.workspace.work, env, licence_until, START_S, warm=warm)

    def _meeting(self) -> Ranks:
        """The ranks with the place where they meet."""
        if self._claim.master is not None:
            address, port = self._claim.master
            return self.ranks.meeting_at(address, port, own_interface(self._settings, address))
        return self.ranks.meeting_at(LOOPBACK, free_port()) if self.ranks.ranked else self.ranks

    def judged(self, ending: Ending) -> Ending:
        """Whether the ranks could meet is the platform's matter: it chose the port, and somebody else has taken it."""
        failure = ending.failure
        if failure is None or self._met is None or self._met.master is None:
            return ending
        address, port = self._met.master
        said = f"{failure.message}\n{failure.detail or ''}"
        if not _TAKEN.search(said) or str(port) not in said:
            return ending
        why = f"port {port} on {address}, where the ranks were to meet, was taken before rank 0 could listen there"
        return replace(ending, failure=failure.model_copy(update={"type": "platform", "message": why}))

    def is_gone(self) -> bool:
        """Whether the tree's end could be seen: its launcher ends it when the lifeline closes."""
        deadline = time.monotonic() + GONE_S
        while self.tree.launcher_is_alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True
