"""Out-of-memory errors, read: whose memory ran out, the numbers in CUDA's message, and a verdict to act on."""

import math
import re
from dataclasses import dataclass

from epochcast.jobs import GpuMemory
from worker.gpus import GpuProcess

_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"
_GIB = {"bytes": 2.0**-30, "KiB": 2.0**-20, "MiB": 2.0**-10, "GiB": 1.0}
# As c10's CUDA caching allocator words it, torch 2.1 to 2.13; the second form is the cudaMallocAsync backend's.
_REQUESTED = re.compile(rf"Tried to allocate {_SIZE}|^Requested\s*: {_SIZE}", re.MULTILINE)
_TOTAL = re.compile(rf"total capacity of {_SIZE}|^Device limit\s*: {_SIZE}", re.MULTILINE)
_FREE = re.compile(rf"of which {_SIZE} is free|^Free \(according to CUDA\): {_SIZE}", re.MULTILINE)
_ALLOCATED = re.compile(rf"{_SIZE} is allocated by PyTorch|^Currently allocated\s*: {_SIZE}", re.MULTILINE)
_UNALLOCATED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")
_ALLOWED = re.compile(rf"{_SIZE} allowed;|user-supplied memory fraction\)\s*: {_SIZE}")
_OWN = re.compile(rf"this process has {_SIZE} memory in use")
_PROCESS = re.compile(rf"Process (\d+) has {_SIZE} memory in use")
_DEVICE = re.compile(r"GPU (\d+) has a total capacity|Allocation on device (\d+)|pin memory thread for device (\d+)")
_OTHERS_NOTEWORTHY_GIB = 1.0

_ALLOCATORS_WORDS = ("CUDA out of memory", "HIP out of memory", "would exceed allowed memory. (out of memory)")
_DEVICES_WORDS = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
)
_LIBRARIES_WORDS = {
    "CUBLAS_STATUS_ALLOC_FAILED": "cuBLAS",
    "CUDNN_STATUS_ALLOC_FAILED": "cuDNN",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED": "cuDNN",
    "CUSOLVER_STATUS_ALLOC_FAILED": "cuSOLVER",
    "CUSPARSE_STATUS_ALLOC_FAILED": "cuSPARSE",
    "CUFFT_ALLOC_FAILED": "cuFFT",
}
_NCCL = re.compile(r"Cuda failure (?:2 )?'out of memory'|Failed to CUDA (?:host )?(?:calloc|malloc)")
_HOSTS_WORDS = ("DefaultCPUAllocator: can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
_SHARED_MEMORYS_WORDS = (
    "unable to allocate shared memory(shm)",
    "out of shared memory",
    "unable to write to file </torch",
)
_HOST_REQUESTED = re.compile(r"you tried to allocate (\d+) bytes")


@dataclass(frozen=True, slots=True)
class CudaOom:
    """What a message tells. `device`: the GPU's number among those that the process sees.

    `limit_gib`: what the script allowed itself. `others`: other processes and what they hold.
    """

    memory: GpuMemory
    device: int | None = None
    limit_gib: float | None = None
    others: tuple[GpuProcess, ...] = ()


def is_cuda_oom(text: str) -> bool:
    """Whether a message is one that CUDA or one of its libraries gives when the GPU's memory is used up."""
    return any(words in text for words in (*_ALLOCATORS_WORDS, *_DEVICES_WORDS)) or library_of(text) is not None


def library_of(text: str) -> str | None:
    """The library that asked for memory beside torch's allocator; None: torch itself did."""
    if _NCCL.search(text):
        return "NCCL"
    return next((name for words, name in _LIBRARIES_WORDS.items() if words in text), None)


def is_host_oom(text: str) -> bool:
    """Whether a message is one of torch's CPU allocator or of the system when there is no more host memory."""
    return any(words in text for words in (*_HOSTS_WORDS, *_SHARED_MEMORYS_WORDS))


def host_oom_words(text: str, first_line: str) -> str:
    """One line of what was wanted when host memory ran out."""
    if any(words in text for words in _SHARED_MEMORYS_WORDS):
        return "its shared memory, /dev/shm, is full"
    requested = _HOST_REQUESTED.search(text)
    return f"tried to allocate {int(requested[1]) / 2**30:,.1f} GiB" if requested else first_line


def read(text: str) -> CudaOom:
    """The numbers in a CUDA out-of-memory message; None where it holds none."""
    allocated, unallocated = _gib(_ALLOCATED, text), _gib(_UNALLOCATED, text)
    reserved = None if allocated is None or unallocated is None else round(allocated + unallocated, 2)
    total, free, own = _gib(_TOTAL, text), _gib(_FREE, text), _gib(_OWN, text)
    listed = [GpuProcess(int(pid), int(float(size) * _GIB[unit] * 2**30)) for pid, size, unit in _PROCESS.findall(text)]
    if own is None and reserved is not None and total is not None:
        # In a container NVML tells the host's pids: the process that holds what torch holds here is this one.
        this = min(
            (one for one in listed if (one.used_bytes or 0) >= (reserved - 0.01) * 2**30),
            key=lambda one: one.used_bytes or 0,
            default=None,
        )
        if this is not None:
            own = (this.used_bytes or 0) / 2**30
            listed.remove(this)
    others = sum(one.used_bytes or 0 for one in listed) / 2**30
    if not listed and total is not None and free is not None and own is not None:
        others = max(0.0, total - free - own)  # processes that this container can't see
    device = _DEVICE.search(text)
    return CudaOom(
        GpuMemory(
            requested_gib=_gib(_REQUESTED, text),
            free_gib=free,
            allocated_gib=allocated,
            reserved_gib=reserved,
            total_gib=total,
            others_gib=None if total is None or (own is None and not listed) else round(others, 2),
        ),
        device=int(next(number for number in device.groups() if number)) if device else None,
        limit_gib=_limit(text, total),
        others=tuple(listed),
    )


def _limit(text: str, total_gib: float | None) -> float | None:
    """The memory fraction that the script set; the asynchronous allocator's message has bytes where it says GiB."""
    limit = _gib(_ALLOWED, text)
    return limit if limit is not None and total_gib is not None and limit < total_gib else None


def verdict(
    oom: CudaOom, batch_size: int | None, batch_named: str = "batch_size", *, text: str = "", who: str | None = None
) -> str | None:
    """A first piece of advice. `who`: names of the other processes, where they are known.

    The batch size is an upper limit: memory that doesn't grow with the batch isn't known, and the allocation that
    failed needn't have been the last of its step.
    """
    memory = oom.memory
    if "pin memory thread" in text or "cudaHostAlloc" in text:
        return (
            "not the GPU's memory but page-locked memory of the host ran out: "
            "pin_memory=False, or fewer and smaller batches in flight (num_workers, prefetch_factor)"
        )
    shared = _shared(memory, who)
    if (library := library_of(text)) is not None and memory.requested_gib is None:
        held = f" ({memory.reserved_gib:.1f} of {memory.total_gib:.1f} GiB)" if _knows_reserved(memory) else ""
        smaller = f"try {batch_named} <= {max(1, batch_size // 2)}" if batch_size else "try a smaller batch"
        return f"{library} found no memory beside what torch holds{held}: {smaller}{shared}"
    requested, allocated = memory.requested_gib, memory.allocated_gib
    whole = oom.limit_gib or memory.total_gib
    if requested is None or whole is None or allocated is None:
        return None
    limited = f" of the {whole:.1f} GiB that the script allows itself" if oom.limit_gib else ""
    capacity = max(whole if oom.limit_gib else whole - (memory.others_gib or 0.0), 0.01)
    needed = allocated + requested
    if needed <= capacity:
        return _fits(memory, requested, allocated) + limited + shared
    if needed <= whole and shared:
        return f"this would fit if the GPU were free{shared}"
    times = needed / capacity
    if batch_size is not None and batch_size > 1:
        smaller = f"try {batch_named} <= {_rounded_down(batch_size / times)}"
        return f"batch too large by about {times:.1f}x: {smaller}{limited}{shared}"
    even = f" even with {batch_named} 1" if batch_size == 1 else ""
    hint = ": try a smaller model, bf16, activation checkpointing, or more GPUs" if batch_size == 1 else ""
    return f"too large for this GPU by about {times:.1f}x{even}{hint}{limited}{shared}"


def _fits(memory: GpuMemory, requested: float, allocated: float) -> str:
    """The sum would fit: then it lies in pieces, or something beside torch's tensors holds the rest."""
    unused = (memory.reserved_gib or allocated) - allocated
    if unused >= requested:
        return (
            f"memory is fragmented: {unused:.1f} GiB are reserved but unused in pieces too small; "
            "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the job's env"
        )
    return f"too little memory by {max(0.0, requested - (memory.free_gib or 0.0)):.1f} GiB"


def _shared(memory: GpuMemory, who: str | None) -> str:
    others = memory.others_gib or 0.0
    if others < _OTHERS_NOTEWORTHY_GIB:
        return ""
    return f"; {others:.1f} GiB are held by other processes" + (f" ({who})" if who else "")


def _knows_reserved(memory: GpuMemory) -> bool:
    return memory.reserved_gib is not None and memory.total_gib is not None


def _gib(pattern: re.Pattern[str], text: str) -> float | None:
    match = pattern.search(text)
    if match is None:
        return None
    size, unit = [group for group in match.groups() if group is not None]
    return round(float(size) * _GIB[unit], 4)


def _rounded_down(batch_size: float) -> int:
    """To the next lower power of two or three quarters of one: 64, 96, 128, 192, …"""
    if batch_size < 2:
        return 1
    power = 1 << math.floor(math.log2(batch_size))
    return power * 3 // 2 if power * 1.5 <= batch_size and power >= 2 else power
