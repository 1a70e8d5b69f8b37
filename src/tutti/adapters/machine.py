"""This machine: what it has, how busy it is, and how much of it the node may take."""

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from tutti.core.errors import UserError
from tutti.domain.nodes import Capabilities
from tutti.domain.policy import GB, Policy
from tutti.ports.machine import Load

log = logging.getLogger(__name__)

_PACKAGES = ("tutti", "numpy", "torch", "scikit-learn")
_BACKENDS = {"torch": "torch", "sklearn": "sklearn"}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_GPU_QUERY = ("--query-gpu=name", "--format=csv,noheader")
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Machine:
    """Implements ports.machine.Host with psutil; imports no framework."""

    def __init__(self) -> None:
        psutil.cpu_percent(None)  # the first call only sets the start of the interval

    def capabilities(self) -> Capabilities:
        return Capabilities(
            cpus=len(usable_cpus()),
            memory=usable_memory(),
            gpus=gpus(),
            platform=f"{platform.system()} {platform.machine()}",
            versions=versions(),
            trainers=tuple(name for name, module in _BACKENDS.items() if importlib.util.find_spec(module)),
        )

    def load(self) -> Load:
        sensors = getattr(psutil, "sensors_battery", lambda: None)  # missing on some platforms
        battery = sensors()
        return Load(
            cpu=psutil.cpu_percent(None) / 100,
            memory=psutil.virtual_memory().percent / 100,
            battery=battery.percent / 100 if battery else None,
            plugged=bool(battery and battery.power_plugged),
        )


def usable_cpus() -> list[int]:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_memory(container_limit: Path = _CONTAINER_LIMIT) -> int:
    """Bytes of memory of the machine, or of the container if that has less."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(container_limit.read_text()))
    except (OSError, ValueError):  # not Linux, not a container, or "max"
        return total


def gpus() -> tuple[str, ...]:
    """Names of the GPUs: PyTorch's if it is loaded already, else those that the NVIDIA driver's tool lists."""
    if torch := sys.modules.get("torch"):
        return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    try:
        listed = subprocess.run([tool, *_GPU_QUERY], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi is there but does not answer, so no GPU is reported: %s", error)
        return ()
    return tuple(name.strip() for name in listed.stdout.splitlines() if name.strip())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def apply_limits(policy: Policy) -> None:
    """Keep this process within its owner's limits; call it before anything imports PyTorch.

    One computing thread, unless the owner grants more with `max_cpus`: sums in floating point depend on how
    they are split over threads, so this way a result does not depend on the number of cores. `max_cpus` also
    binds the process to so many processors, and `max_ram` bounds the memory that it may allocate (Linux), so
    that a model too large ends in a MemoryError here and not in an unusable machine. `max_gpu` bounds the units of a
    GPU where NVIDIA's MPS shares it; its memory is bounded by `share_gpus`. Raises UserError where there is no GPU.
    """
    if policy.max_cpus is not None:
        _bind(policy.max_cpus)
    _set_threads(min(policy.max_cpus or 1, len(usable_cpus())))
    if policy.max_ram is not None:
        _limit_memory(policy.max_ram)
    if not policy.allow_gpu:
        os.environ.update(dict.fromkeys(_GPU_VARIABLES, ""))
    if policy.max_gpu is not None:
        if not gpus():
            raise UserError(f"the policy lends {policy.max_gpu:g} of a GPU, and none is found here: leave max_gpu out")
        os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(max(1, round(100 * policy.max_gpu)))


def share_gpus(policy: Policy) -> None:
    """Bound what this process takes of each GPU's memory, beyond which PyTorch raises its OutOfMemoryError.

    For a process that has PyTorch, before it moves anything to a GPU; does nothing in others.
    """
    torch = sys.modules.get("torch")
    if policy.max_gpu is not None and torch is not None:
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(policy.max_gpu, index)


def _bind(count: int) -> None:
    """Run on `count` processors; where they begin depends on the process, so that two nodes do not share them."""
    if not hasattr(os, "sched_setaffinity"):
        log.warning("this platform cannot bind a process to processors: max_cpus only sets the number of threads")
        return
    cpus = usable_cpus()
    first = os.getpid() * count
    os.sched_setaffinity(0, {cpus[(first + step) % len(cpus)] for step in range(min(count, len(cpus)))})


def _set_threads(count: int) -> None:
    """For libraries loaded later by environment, for those loaded already by their own switch."""
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(count)))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    if importlib.util.find_spec("threadpoolctl"):  # comes with scikit-learn
        import threadpoolctl

        threadpoolctl.threadpool_limits(count)


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ImportError:
        log.warning("this platform cannot limit memory: max_ram only steers the batch size")
        return
    _, ceiling = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = limit if ceiling == resource.RLIM_INFINITY else min(limit, ceiling)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, ceiling))
    used = psutil.Process().memory_info().rss
    if used > limit:
        log.warning("this process uses %.1f GB already, max_ram is %.1f GB", used / GB, limit / GB)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, up to 1 GiB, for the next who asks: fresh pages cost more than sums do.

    For a process through which large vectors pass again and again, before it starts threads. Does nothing where the
    library has no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
