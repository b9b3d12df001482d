"""What one report costs the training loop: run.report() against an XADD straight from the loop. One line of JSON."""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(0, str(CHECKOUT))

ROUNDS = 5
CALLS = 3_000

# A process of its own, as the supervisor is: a thread would share the loop's interpreter lock.
DRAIN = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
connection, _ = listener.accept()
while connection.recv(65536):
    pass
"""


def microseconds(call: Callable[[int], object]) -> list[float]:
    times = []
    for number in range(1, CALLS + 1):
        start = time.perf_counter_ns()
        call(number)
        times.append((time.perf_counter_ns() - start) / 1000)
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(f"{folder}/socket")
        listener.listen()
        drain = subprocess.Popen([sys.executable, "-c", DRAIN, str(listener.fileno())], pass_fds=(listener.fileno(),))
        try:
            result = measure(Path(folder))
        finally:
            drain.kill()
            drain.wait()
    print(json.dumps(result))


def measure(folder: Path) -> dict[str, object]:
    job = {"job_id": 1, "attempt": 1, "name": "bench", "recipe": None, "params": {}, "total_epochs": CALLS, "seed": 0}
    (folder / "job.json").write_text(json.dumps({**job, "threads": 1, "checkpoints": [], "out_dir": str(folder)}))
    os.environ |= {"EPOCHCAST_SOCKET": f"{folder}/socket", "EPOCHCAST_JOB": f"{folder}/job.json"}

    import epochcast
    from shared.embedded import RedisServer

    run = epochcast.init()
    with RedisServer(folder / "redis") as server, server.client() as client:
        # Alternating, so that a noisy minute of the machine hits both.
        reports, adds = [], []
        for _ in range(ROUNDS):
            reports += microseconds(lambda number: run.report(epoch=number, train_loss=0.0234, val_loss=0.0289))
            adds += microseconds(
                lambda number: client.xadd("bench", {"epoch": number, "train_loss": 0.0234, "val_loss": 0.0289})
            )
    report_us, xadd_us = statistics.median(reports), statistics.median(adds)
    return {
        "benchmark": "report",
        "report_us": round(report_us, 1),
        "report_p99_us": round(statistics.quantiles(reports, n=100)[98], 1),
        "xadd_us": round(xadd_us, 1),
        "xadd_p99_us": round(statistics.quantiles(adds, n=100)[98], 1),
        "report_over_xadd": round(report_us / xadd_us, 3),
        "calls": len(reports),
    }


if __name__ == "__main__":
    main()
