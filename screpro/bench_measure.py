"""How the benchmarks measure: turns, memory in a process of its own, peers of a second environment, the machine."""

import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from screpro.errors import ScreproError
from screpro.second_python import environment, run_script

__all__ = [
    "ELSEWHERE",
    "MISSING",
    "PEERS",
    "PEER_PYTHON",
    "Rows",
    "apart",
    "around",
    "around_elsewhere",
    "can_measure_memory",
    "cuda",
    "in_second_environment",
    "limit_threads",
    "machine",
    "once",
    "peak_memory",
    "peer_versions",
    "relative",
    "report_peak",
    "row",
    "threads",
    "turns",
]

PEER_PYTHON = "SCREPRO_PEER_PYTHON"
"""Environment variable: the Python of an environment with the peers that cannot be installed beside the others."""

PEERS = ("POT", "faiss-cpu", "geomloss", "illico", "pykeops", "scanpy", "scikit-learn", "scipy", "torch")
"""Distributions of the peers that run in this environment; `bench_peers.PEERS` are those of the second one.

What a row calls its peer begins with the name of its distribution, unless it is a formula written out here.
"""

MISSING = 'not measured: pip install "screpro[bench]"'
ELSEWHERE = f"not measured: {PEER_PYTHON} names no Python with it"

Rows = list[dict[str, Any]]


def turns(*functions: Callable[[], Any], seconds: float = 4.0, least: int = 5) -> list[float]:
    """Median milliseconds of each function, called in turn after one warm-up each."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    started = time.monotonic()
    while len(times[0]) < least or time.monotonic() - started < seconds:
        for function, own in zip(functions, times, strict=True):
            own.append(once(function)[0])
    return [statistics.median(own) for own in times]


def around(
    ours: Callable[[], Any], peer: Callable[[], Any], *, seconds: float = 1.0, rounds: int = 1, rest: float = 0.0
) -> tuple[float, float, Any]:
    """Median milliseconds of ours, called before and after each call of a slow peer; the peer's, and its result.

    Before every call `rest` seconds pass: where either side uses BLAS, whose threads go on spinning for a tenth of a
    second after their last call, what is called next would be charged for them.
    """
    ours()
    times, of_peer = _repeated(ours, seconds, rest), []
    for _ in range(rounds):
        time.sleep(rest)
        peer_ms, result = once(peer)
        of_peer.append(peer_ms)
        times += _repeated(ours, seconds, rest)
    return statistics.median(times), statistics.median(of_peer), result


def _repeated(function: Callable[[], Any], seconds: float, rest: float) -> list[float]:
    """Milliseconds of two calls or more: of a short function many, as its time scatters most."""
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 2 or time.monotonic() - started < seconds:
        time.sleep(rest)
        times.append(once(function)[0])
    return times


def around_elsewhere(
    ours: Callable[[], Any], job: str, arrays: dict[str, np.ndarray]
) -> tuple[float, float, dict[str, np.ndarray]] | None:
    """As `around` for a peer of the second environment, its median over three calls; None where there is none."""
    if not os.environ.get(PEER_PYTHON):
        return None
    ours_ms, _, (times, results) = around(ours, lambda: in_second_environment(job, arrays))
    return ours_ms, statistics.median(times), results


def once(function: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of one call, until the GPU is done as well, and what it returned."""
    _finish()
    begun = time.perf_counter()
    result = function()
    _finish()
    return 1e3 * (time.perf_counter() - begun), result


def _finish() -> None:
    if "torch" in sys.modules and cuda():
        sys.modules["torch"].cuda.synchronize()


def cuda() -> bool:
    """Whether there is a GPU to measure on."""
    import torch

    return torch.cuda.is_available()


def threads() -> int:
    """Threads that everything measured may use: ``SCREPRO_THREADS``, or all cores; at most what numba may use."""
    import numba

    return min(int(os.environ.get("SCREPRO_THREADS", os.cpu_count() or 1)), numba.config.NUMBA_NUM_THREADS)


def limit_threads() -> None:
    """Give this process `threads()` threads in torch, numba and BLAS alike."""
    import numba
    import scipy.linalg  # noqa: F401  its BLAS is a library of its own
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads())
    numba.set_num_threads(threads())
    threadpool_limits(threads())


def machine() -> str:
    """CPU model, threads, torch, and the GPU if there is one."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    name = f"{model}, {threads()} threads, torch {torch.__version__}"
    return f"{name}, {torch.cuda.get_device_name()}" if cuda() else name


def row(
    operation: str,
    size: str,
    *,
    peer: str,
    target: str = "",
    ours_ms: float | None = None,
    peer_ms: float | None = None,
    agreement: str = "",
    memory: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """One line of a benchmark; `memory` is (peak beyond the input, input) in MiB."""
    return {
        "operation": operation,
        "size": size,
        "ours_ms": ours_ms,
        "peer": peer,
        "peer_ms": peer_ms,
        "ratio": peer_ms / ours_ms if ours_ms and peer_ms else None,
        "target": target,
        "agreement": agreement,
        "peak_mib": memory[0] if memory else None,
        "input_mib": memory[1] if memory else None,
    }


def apart(value: float, other: float) -> str:
    """Relative difference of two numbers, in words."""
    return f"{abs(value - other) / max(abs(other), math.ulp(0.0)):.0e} apart"


def relative(a, b) -> float:
    """Largest difference of two tensors over the largest size."""
    return float((a - b).abs().max() / b.abs().max())


def peak_memory(module: str, name: str) -> tuple[float, float]:
    """MiB that an operation takes beyond its input at its peak, and MiB of the input, from a fresh process.

    ``python -m MODULE NAME`` prints both; `report_peak` does that. A fresh process, because memory that an earlier
    call has given back to the allocator would hide what this one takes.
    """
    out = subprocess.run(
        [sys.executable, "-m", module, name], capture_output=True, text=True, check=False, env=environment(threads())
    )
    if out.returncode:
        raise ScreproError("Memory is measured in a process of its own.", got=out.stderr[-500:], fix="see the error")
    peak, size = json.loads(out.stdout.splitlines()[-1])
    return peak, size


def report_peak(call: Callable[[], Any], warm_up: Callable[[], Any], input_bytes: int) -> None:
    """Print [peak beyond the input, input] in MiB of a call, after the same on something small.

    On a GPU what torch allocates there; else the highest resident memory that Linux saw during the call.
    """
    warm_up()
    if cuda():
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what the making of the input has left behind would be used without being counted
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = _resident("VmRSS")
        call()
        peak = _resident("VmHWM") - before
    print(json.dumps([peak / 2**20, input_bytes / 2**20]))


def _resident(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def can_measure_memory() -> bool:
    """Whether there is a GPU, which counts its allocations, or Linux, which knows the peak of a process."""
    return cuda() or Path("/proc/self/clear_refs").is_file()


def in_second_environment(job: str, arrays: dict[str, np.ndarray]) -> tuple[list[float], dict[str, np.ndarray]]:
    """Milliseconds of every call of a peer in the second environment, and its results.

    `screpro.bench_peers` runs there as a plain script: arrays in and out as .npz, times as JSON.
    """
    printed, results = run_script(
        Path(__file__).with_name("bench_peers.py"),
        job,
        given=arrays,
        variable=PEER_PYTHON,
        threads=threads(),
        rule=f"{PEER_PYTHON} names a Python with the peers of the second environment.",
        fix=f"install there what `screpro bench --help` says, or unset {PEER_PYTHON}",
    )
    return json.loads(printed.splitlines()[-1]), results


def peer_versions() -> dict[str, str]:
    """Version of every installed peer by the name of its distribution: of this environment and of the second one.

    A second environment that does not answer leaves its peers out: a benchmark that calls one has failed before.
    """
    found = {}
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if os.environ.get(PEER_PYTHON):
        with contextlib.suppress(ScreproError):
            found |= {name: str(version) for name, version in in_second_environment("versions", {})[1].items()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
