"""The lease keeper: a thread and a connection of its own that renew the right to write, and with it to compute."""

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from shared.attempt import Heartbeat, LeaseLost
from shared.database import DatabaseUnavailable
from shared.settings import Settings
from worker.outcome import Cut
from worker.process_tree import boottime_s
from worker.requests import Requests

logger = structlog.get_logger(__name__)


class Leased(Protocol):
    """A row that is owned for as long as it is renewed."""

    def heartbeat(self, lease_s: float) -> Heartbeat: ...


class LeaseKeeper:
    """Renews until `stop`; `on_renewed(licence_until)` is called from its thread.

    The licence counts from before the heartbeat was sent, so it always ends before the lease does.
    """

    def __init__(
        self, record: Leased, settings: Settings, requests: Requests, on_renewed: Callable[[float], None]
    ) -> None:
        self._record = record
        self._settings = settings
        self._requests = requests
        self._on_renewed = on_renewed
        self._woken = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Somebody says that a stop was asked: look now."""
        self._woken.set()

    def stop(self) -> None:
        self._ending = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ending:
            try:
                self._renew()
            except LeaseLost:
                if not self._ending:
                    self._requests.ask(Cut.LEASE_LOST)
                return
            except Exception:
                # Without renewals the licence ends the training anyway; this way somebody hears why.
                logger.exception("the lease keeper failed")
                self._requests.ask(Cut.PLATFORM)
                return
            self._woken.wait(self._settings.heartbeat_s)
            self._woken.clear()

    def _renew(self) -> None:
        asked_at = boottime_s()
        try:
            beat = self._record.heartbeat(self._settings.lease_s)
        except DatabaseUnavailable as error:
            # Nothing to do but try again: the licence runs out by itself before anybody else may start.
            logger.warning("heartbeat not written: SQL is away", error=str(error))
            return
        self._on_renewed(asked_at + self._settings.licence_s)
        if beat.ordered == "kill":
            self._requests.ask(Cut.GANG)
        if beat.stop_requested:
            self._requests.ask(Cut.STOPPED)
        elif beat.ordered == "drain":
            self._requests.ask(Cut.DRAINED)
