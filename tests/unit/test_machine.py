"""This machine: the probe, and the owner's limits, each tried in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tutti.adapters.machine import Machine, usable_memory

CLEAN = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}


def in_new_process(code: str, **environment: str) -> dict[str, object]:
    """Run code in a fresh interpreter; it prints one JSON object."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**CLEAN, **environment}
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_the_probe_tells_what_the_machine_has() -> None:
    capabilities = Machine().capabilities()
    assert 1 <= capabilities.cpus <= (os.cpu_count() or 1)
    assert 0 < capabilities.memory <= psutil.virtual_memory().total
    assert capabilities.platform
    assert capabilities.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert capabilities.versions.keys() >= {"tutti", "numpy"}
    assert set(capabilities.trainers) <= {"torch", "sklearn"}


def test_the_load_is_in_shares() -> None:
    load = Machine().load()
    assert load.cpu >= 0.0
    assert 0.0 < load.memory <= 1.0
    assert load.battery is None or 0.0 <= load.battery <= 1.0


def test_the_probe_imports_no_framework() -> None:
    code = (
        "import json, sys; from tutti.adapters.machine import Machine; Machine().capabilities();"
        "print(json.dumps({'heavy': [name for name in ('torch', 'sklearn') if name in sys.modules]}))"
    )
    assert in_new_process(code) == {"heavy": []}


@pytest.mark.parametrize(("limit", "expected"), [("1000", 1000), ("max", None), ("9" * 20, None)])
def test_a_containers_limit_counts_if_it_is_lower(tmp_path: Path, limit: str, expected: int | None) -> None:
    file = tmp_path / "memory.max"
    file.write_text(limit + "\n")
    total = psutil.virtual_memory().total
    assert usable_memory(file) == (expected or total)
    assert usable_memory(tmp_path / "absent") == total


@pytest.mark.skipif(os.name != "posix", reason="the stand-in tool is a shell script")
@pytest.mark.parametrize(
    ("script", "hidden", "expected"),
    [
        ("printf 'NVIDIA A\\nNVIDIA B\\n'", None, ["NVIDIA A", "NVIDIA B"]),
        ("exit 9", None, []),
        ("printf 'NVIDIA A\\n'", "", []),
    ],
)
def test_gpus_are_those_that_the_drivers_tool_lists(
    tmp_path: Path, script: str, hidden: str | None, expected: list[str]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    environment = {"PATH": str(tmp_path)} | ({} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden})
    code = "import json; from tutti.adapters.machine import gpus; print(json.dumps({'gpus': gpus()}))"
    assert in_new_process(code, **environment) == {"gpus": expected}


LIMITED = """
import json, os, sys
import numpy as np
from tutti.adapters.machine import apply_limits
from tutti.domain.policy import load_policy
apply_limits(load_policy({policy!r}))
import threadpoolctl
result = {{
    "cpus": len(os.sched_getaffinity(0)),
    "environment": os.environ["OMP_NUM_THREADS"],
    "threads": max((pool["num_threads"] for pool in threadpoolctl.threadpool_info()), default=1),
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
}}
try:
    np.ones(10**9)
    result["memory"] = "8 GB were there"
except MemoryError:
    result["memory"] = "MemoryError"
print(json.dumps(result))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="affinity and RLIMIT_DATA work on Linux")
def test_limits_bind_processors_threads_memory_and_gpus() -> None:
    result = in_new_process(LIMITED.format(policy='max_cpus = 1\nmax_ram = "2 GB"\nallow_gpu = false'))
    assert result == {"cpus": 1, "environment": "1", "threads": 1, "gpus": "", "memory": "MemoryError"}


@pytest.mark.skipif(sys.platform != "linux", reason="affinity works on Linux")
def test_without_a_limit_the_process_is_free_but_computes_in_one_thread() -> None:
    code = LIMITED.format(policy="").replace("np.ones(10**9)", "np.ones(10)")
    result = in_new_process(code)
    assert result["cpus"] == len(os.sched_getaffinity(0))
    assert (result["environment"], result["threads"], result["gpus"]) == ("1", 1, None)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity works on Linux")
def test_more_processors_than_there_are_is_all_of_them() -> None:
    result = in_new_process(LIMITED.format(policy='max_cpus = 512\nmax_ram = "2 GB"'))
    cpus = len(os.sched_getaffinity(0))
    assert (result["cpus"], result["environment"]) == (cpus, str(cpus))


GPU_SHARE = """
import json, os, sys, types
calls = []
cuda = types.SimpleNamespace(
    device_count=lambda: 2, get_device_name=lambda index: f"NVIDIA {index}",
    set_per_process_memory_fraction=lambda share, index: calls.append([share, index]),
)
from tutti.adapters.machine import apply_limits, share_gpus
from tutti.core.errors import UserError
from tutti.domain.policy import load_policy
policy = load_policy(POLICY)
try:
    apply_limits(policy)
    share_gpus(policy)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
    share_gpus(policy)
    problem = ""
except UserError as error:
    problem = str(error)
print(json.dumps({"calls": calls, "units": os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"), "problem": problem}))
"""


@pytest.mark.skipif(os.name != "posix", reason="the stand-in tool is a shell script")
@pytest.mark.parametrize(
    ("policy", "gpu", "calls", "units", "problem"),
    [
        ("max_gpu = 0.25", True, [[0.25, 0], [0.25, 1]], "25", ""),
        ("", True, [], None, ""),
        ("max_gpu = 0.25", False, [], None, "lends 0.25 of a GPU, and none is found here: leave max_gpu out"),
    ],
)
def test_a_share_of_a_gpu_is_of_its_memory_and_units_and_refused_without_one(
    tmp_path: Path, policy: str, gpu: bool, calls: list[object], units: str | None, problem: str
) -> None:
    """With stand-ins for the driver's tool and for PyTorch on a GPU: our machine has none."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{'echo NVIDIA A' if gpu else 'exit 9'}\n")
    tool.chmod(0o755)
    found = in_new_process(GPU_SHARE.replace("POLICY", repr(policy)), PATH=str(tmp_path))
    assert (found["calls"], found["units"]) == (calls, units)
    assert problem in str(found["problem"])
    assert bool(problem) == bool(found["problem"])


BUSY = """
import hashlib, json, threading, time
from tutti.adapters.machine import apply_limits
from tutti.domain.policy import load_policy
apply_limits(load_policy(POLICY))
until, block = time.perf_counter() + 1.0, bytes(1 << 20)
def work():
    while time.perf_counter() < until:
        hashlib.sha256(block)  # without Python's lock: threads run side by side where they may
threads = [threading.Thread(target=work) for _ in range(4)]
wall, used = time.perf_counter(), time.process_time()
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"processors": (time.process_time() - used) / (time.perf_counter() - wall)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="affinity works on Linux")
def test_four_busy_threads_use_no_more_processors_than_their_owner_lends() -> None:
    """Measured: processor time by time that passes."""
    assert float(str(in_new_process(BUSY.replace("POLICY", "'max_cpus = 1'"))["processors"])) <= 1.05


GROWING = """
import json
from tutti.adapters.machine import apply_limits
from tutti.domain.policy import load_policy
import psutil
apply_limits(load_policy('max_ram = "300 MB"'))
kept = []
try:
    while len(kept) < 1000:
        kept.append(bytearray(b"x") * (4 << 20))
except MemoryError:
    pass
print(json.dumps({"resident": psutil.Process().memory_info().rss, "blocks": len(kept)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA works on Linux")
def test_a_process_that_takes_all_memory_it_can_gets_no_more_than_its_owner_lends() -> None:
    """Measured: what it holds when the next block is refused; code and shared libraries are no data and come on top."""
    found = in_new_process(GROWING)
    assert 20 <= int(str(found["blocks"])) <= 75
    assert int(str(found["resident"])) < 400e6
