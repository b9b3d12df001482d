"""What a job's `env` can't set: the platform's own names, and those that are read before a script starts."""

import re

PREFIXES = {
    "EPOCHCAST_": "is the platform's own",
    "PYTHON": "is read before the script starts; set it for what the script itself starts, in the script",
    "LD_": "is read before the script starts",
    "TORCHELASTIC_": "is set by the platform for each process",
}
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK")
_RENDEZVOUS = ("ROLE_WORLD_SIZE", "ROLE_NAME", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
NAMES = {
    **dict.fromkeys((*_RANKS, *_RENDEZVOUS), "is set by the platform for each process"),
    **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"), "is set by placement; ask for gpus"),
    "OMP_NUM_THREADS": "is set from the job's threads",
    "CUBLAS_WORKSPACE_CONFIG": "is fixed, so that a resumed job computes the same bits",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "is the platform's own",
    "TMPDIR": "is a folder of the attempt",
    **dict.fromkeys(("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT"), "is the platform's own"),
}
MAX_VALUE_BYTES = 32 * 1024


def why_refused(name: str, value: str) -> str | None:
    """Why a job may not set this; None: it may."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", name):
        return "is no name of an environment variable: letters, digits and _, not a digit first"
    if "\0" in value:
        return "has a value with a NUL character"
    if len(value.encode(errors="surrogatepass")) > MAX_VALUE_BYTES:
        return f"has a value of more than {MAX_VALUE_BYTES} bytes; put it into a file of the bundle"
    if name in NAMES:
        return NAMES[name]
    return next((reason for prefix, reason in PREFIXES.items() if name.startswith(prefix)), None)
