"""Taking this host's place in a job on several: claimed, then held until all hosts have come and the job starts."""

import time

import structlog

from shared.claims import Claim, Membership, ProcessIdentity, claim
from shared.database import Database, DatabaseUnavailable
from shared.membership import Standing, addresses, claim_member, hold_place, standing, started_member
from shared.settings import Settings
from worker.address import meeting_address, own_address
from worker.process_tree import boottime_s
from worker.ranks import free_port

logger = structlog.get_logger(__name__)

LOOK_S = 0.25


class Joining:
    """One host's wait for the others. The record decides how long: whoever releases the job deletes the place."""

    def __init__(self, settings: Settings, database: Database, threads: int, identity: ProcessIdentity) -> None:
        self._settings = settings
        self._database = database
        self._threads = threads
        self._identity = identity
        self._address = own_address(settings)
        self.renewed_at = 0.0
        """When the lease was last asked for (CLOCK_BOOTTIME): the licence counts from there."""

    def run(self, job_id: int) -> Claim | None:
        """The claim once the job has started; None: this host has no place in it, or all were released."""
        self.renewed_at = boottime_s()
        settings, identity = self._settings, self._identity
        try:
            membership = claim_member(
                self._database, job_id, settings.host_name, settings.lease_s, identity, self._address
            )
        except DatabaseUnavailable as error:
            logger.warning("place not claimed: SQL is away; it is poked again", error=str(error))
            return None
        if membership is None:
            return None
        logger.info("place claimed; waiting for the other hosts", member=membership.member, of=membership.nodes)
        while True:
            try:
                decided, claimed = self._look(membership)
            except DatabaseUnavailable as error:
                logger.warning("waiting for the other hosts: SQL is away", error=str(error))
                decided, claimed = boottime_s() > self.renewed_at + settings.licence_s, None
            if decided:
                return claimed
            time.sleep(LOOK_S)

    def _look(self, membership: Membership) -> tuple[bool, Claim | None]:
        """Whether the wait is over, and with what."""
        if boottime_s() > self.renewed_at + self._settings.heartbeat_s:
            asked_at = boottime_s()
            if hold_place(self._database, membership, self._settings.lease_s):
                self.renewed_at = asked_at
        match standing(self._database, membership):
            case Standing.WAITING:
                return False, None
            case Standing.READY:
                claimed = self._claim(membership)
                return claimed is not None, claimed
            case Standing.STARTED:
                return True, started_member(self._database, membership) if membership.member > 0 else None
            case Standing.RELEASED:
                logger.info("the job's hosts were released")
                return True, None

    def _claim(self, membership: Membership) -> Claim | None:
        """The job's own claim. None: a host has left at the last moment, and the wait goes on."""
        _, *others = addresses(self._database, membership)
        address = meeting_address(self._settings, self._address, others)
        # Tried where the ranks will listen; a name, or an address that only others see, can't be bound to.
        try:
            port = free_port(address)
        except OSError:
            port = free_port("0.0.0.0")
        asked_at = boottime_s()
        settings = self._settings
        claimed = claim(
            self._database,
            membership.job_id,
            settings.host_name,
            settings.lease_s,
            self._threads,
            self._identity,
            membership,
            (address, port),
        )
        if claimed is not None:
            self.renewed_at = asked_at
        return claimed
