"""Where a figure was measured: the machine and the versions, without which it means nothing. Standard library only."""

import os
import platform
import subprocess
from importlib import metadata

PACKAGES = (
    "torch", "numpy", "redis", "celery", "kombu", "sqlalchemy", "fastapi", "uvicorn", "websockets", "tensorboard",
    "mlflow-skinny", "picows", "uvloop", "hiredis",
)  # fmt: skip


def describe() -> dict[str, str]:
    """CPU model, cores this process may use, memory, kernel, and each GPU with its driver where there is one."""
    found = {
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }
    gpus = _gpus()
    return found | ({"gpu": gpus} if gpus else {})


def versions() -> dict[str, str]:
    """Of Python, the Redis server that was started, and the packages that are installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    server = _redis_server()
    return found | ({"redis-server": server} if server else {})


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _gpus() -> str:
    """As nvidia-smi names them; none where it isn't there."""
    try:
        ran = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(ran.stdout.split("\n")).strip("; ") if ran.returncode == 0 else ""


def _redis_server() -> str:
    try:
        from shared.embedded import RedisUnavailable, find_binary
    except ImportError:  # a GPU machine with torch alone
        return ""
    try:
        said = subprocess.run([str(find_binary()), "--version"], capture_output=True, text=True, timeout=30).stdout
    except RedisUnavailable:
        return ""
    return next((word.removeprefix("v=") for word in said.split() if word.startswith("v=")), "")
