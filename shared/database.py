"""One way to SQL for gateway and worker: an engine, read and write transactions, and the clock that leases live by."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

FROZEN_S = 10
MIGRATIONS = Path(__file__).parent / "migrations"

# read_only_sql_transaction; admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped
_NOT_THIS_SERVER = ("25006", "57P01", "57P02", "57P03", "57P04")


class DatabaseUnavailable(Exception):
    """Raised when SQL can't be reached, or is locked for longer than this process's patience."""


class Database:
    """Connections to the record.

    `patience_s` bounds every wait (SQLite's lock, PostgreSQL's connect and statements): 5 s in a worker, 1 s in a
    gateway, whose callers get a 503 instead of a hanging request. `clock` stands in for SQLite's missing clock only;
    on PostgreSQL leases are compared with the server's.
    """

    def __init__(
        self, url: str, *, patience_s: float = 5.0, connections: int = 5, clock: Callable[[], float] = time.time
    ) -> None:
        self.url = sa.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._clock = clock
        if self.is_sqlite:
            self.engine = self._sqlite_engine(patience_s, connections)
        else:
            self.engine = self._postgres_engine(patience_s, connections)

    def _sqlite_engine(self, patience_s: float, connections: int) -> sa.Engine:
        if self.url.database and self.url.database != ":memory:":
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            self.url,
            connect_args={"timeout": patience_s, "check_same_thread": False, "isolation_level": None},
            poolclass=sa.QueuePool,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=patience_s,
        )

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            # FULL: a finished job stays finished through a power cut, as on PostgreSQL.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.create_function("epoch_now", 0, self._clock)

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            # A deferred transaction that turns into a write fails at once, whatever the timeout: writers say so first.
            writes = connection.get_execution_options().get("epochcast_writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    def _postgres_engine(self, patience_s: float, connections: int) -> sa.Engine:
        milliseconds = int(patience_s * 1000)
        options = (
            f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds} -c timezone=UTC "
            # A process frozen inside a transaction would keep its row locks, and its job from being taken back.
            f"-c idle_in_transaction_session_timeout={FROZEN_S * 1000}"
        )
        engine = sa.create_engine(
            self.url,
            connect_args={
                "connect_timeout": max(2, int(patience_s)),  # libpq reads 1 as 2
                "options": options,
                "tcp_user_timeout": milliseconds,
                "keepalives_idle": 10,
            },
            pool_size=connections,
            max_overflow=0,
            pool_timeout=patience_s,
            pool_pre_ping=True,
        )

        @sa.event.listens_for(engine, "handle_error")
        def leave_former_primary(context: sa.engine.ExceptionContext) -> None:
            # After a failover an open connection may lead to what is read-only now: only a new one finds the primary.
            if _sqlstate(context.original_exception) in _NOT_THIS_SERVER:
                context.is_disconnect = True

        return engine

    @property
    def now(self) -> sa.ColumnElement[float]:
        """The clock, as SQL: Unix seconds by the database server (SQLite: by this process)."""
        if self.is_sqlite:
            return sa.func.epoch_now(type_=sa.Double())
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double())

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads. Raises DatabaseUnavailable."""
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that may write: committed at its end, or rolled back. Raises DatabaseUnavailable."""
        with self._transaction(writes=True) as connection:
            yield connection

    @contextmanager
    def _transaction(self, writes: bool) -> Iterator[sa.Connection]:
        try:
            with self.engine.connect().execution_options(epochcast_writes=writes) as connection, connection.begin():
                yield connection
        except (PoolTimeoutError, DBAPIError) as error:
            if isinstance(error, PoolTimeoutError) or is_outage(error):
                raise DatabaseUnavailable(_first_line(error)) from error
            raise

    def time(self, connection: sa.Connection) -> float:
        """The database's clock now, Unix seconds."""
        return float(connection.execute(sa.select(self.now)).scalar_one())

    def upgrade(self) -> None:
        """Brings the schema to the newest migration; safe when several processes do it at once."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.engine.connect().execution_options(epochcast_writes=True) as connection, connection.begin():
            if not self.is_sqlite:
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(6024001)")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def close(self) -> None:
        self.engine.dispose()


def is_outage(error: DBAPIError) -> bool:
    """Whether the server is at fault; an integrity or data error is our mistake and must not look like an outage."""
    if error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
        return True
    # 25P02: a statement after one that failed, in the same transaction; the first one's error says what is wrong.
    return isinstance(error, sa.exc.InternalError) and _sqlstate(error.orig) != "25P02"


def _sqlstate(error: BaseException | None) -> str:
    return getattr(error, "sqlstate", None) or ""


def _first_line(error: SQLAlchemyError) -> str:
    original: Any = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(original).__name__])[0]


def upgrade(url: str) -> None:
    """Migrates the database at `url`: what `up`, the compose file and the tests call."""
    database = Database(url, patience_s=60)
    try:
        database.upgrade()
    finally:
        database.close()
