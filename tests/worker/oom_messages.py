"""Out-of-memory messages word for word, as torch and the libraries below it give them."""

ADVICE = (
    " If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to "
    "avoid fragmentation.  See documentation for Memory Management  "
    "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)
# c10/cuda/CUDACachingAllocator.cpp, torch 2.1 to 2.13; numbers of our own.
CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 1.20 GiB is "
    "free. Process 4711 has 400.00 MiB memory in use. Including non-PyTorch memory, this process has 138.20 GiB memory "
    "in use. Of the allocated memory 130.10 GiB is allocated by PyTorch, with 12.00 MiB allocated in private pools "
    "(e.g., CUDA Graphs), and 7.80 GiB is reserved by PyTorch but unallocated." + ADVICE
)
FRAGMENTED = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.00 GiB of which 512.00 MiB is "
    "free. Including non-PyTorch memory, this process has 78.00 GiB memory in use. Of the allocated memory 50.00 GiB "
    "is allocated by PyTorch, and 27.00 GiB is reserved by PyTorch but unallocated." + ADVICE
)
# From runs in containers, where NVML names the process by the host's pid: it is the one that failed.
IN_CONTAINER = (
    "CUDA out of memory. Tried to allocate 14.00 MiB. GPU 0 has a total capacity of 22.30 GiB of which 4.69 MiB is "
    "free. Process 860120 has 22.29 GiB memory in use. Of the allocated memory 21.92 GiB is allocated by PyTorch, with "
    "22.00 MiB allocated in private pools (e.g., CUDA Graphs), and 16.47 MiB is reserved by PyTorch but unallocated."
)
# No NVML: no process is named.
UNNAMED = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8.00 GiB of which 0 bytes is free. "
    "Of the allocated memory 7.51 GiB is allocated by PyTorch, and 15.90 MiB is reserved by PyTorch but unallocated."
)
# `torch.cuda.set_per_process_memory_fraction(0.5)`
FRACTION = (
    "CUDA out of memory. Tried to allocate 10.00 GiB. GPU 1 has a total capacity of 80.00 GiB of which 45.00 GiB is "
    "free. Including non-PyTorch memory, this process has 35.00 GiB memory in use. 40.00 GiB allowed; Of the allocated "
    "memory 34.00 GiB is allocated by PyTorch, and 500.00 MiB is reserved by PyTorch but unallocated." + ADVICE
)
# c10/cuda/CUDAMallocAsyncAllocator.cpp; its last number is in bytes, whatever the unit says.
ASYNC = (
    "Allocation on device 0 would exceed allowed memory. (out of memory)\n"
    "Currently allocated     : 4.86 GiB\n"
    "Requested               : 10.12 GiB\n"
    "Device limit            : 24.00 GiB\n"
    "Free (according to CUDA): 0 bytes\n"
    "PyTorch limit (set by user-supplied memory fraction)\n"
    "                        : 17179869184.00 GiB"
)
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
CUDNN = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'"
)
DRIVER = (
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in "
    "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call"
)
TRITON = "Triton Error [CUDA]: out of memory"
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
)
SHARED_MEMORY = "unable to allocate shared memory(shm) for file </torch_4711_1>: Success (0)"
