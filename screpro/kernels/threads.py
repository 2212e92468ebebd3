"""Compiled loops side by side, on the threads that torch itself works with.

The threads of torch's OpenMP library do not sleep between two operations: they spin for some milliseconds and wait for
the next one. A pool of one's own then shares the cores with them, which on two cores took a third to almost half of
the speed of the loops here wherever torch had just worked, that is, in every training step. So loops run in torch's own
team: ``GOMP_parallel`` of the library that torch has loaded calls a Python function on each of its threads, which gives
the interpreter lock back in compiled code and in torch's operations. Inside a team those run on one thread.

Where torch brings another library (macOS, Windows), and in a forked process, whose team did not survive, it is a pool.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

__all__ = ["each", "in_parts"]

_PROCESS = os.getpid()
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_HERE = threading.local()


def each(worker: Callable[[], Callable[[int], None]], count: int) -> None:
    """Call ``task(index)`` for every index below `count`, on as many threads as torch is set to use.

    Every thread makes its own task by ``worker()``, with its own buffers, takes the next index until none is left,
    and uses one core: no barrier after every operation, and a slow core does fewer tasks instead of holding up all.
    The first error of a task is raised when all threads have stopped. A loop inside a loop has the thread it is on, no
    other: in a pool it would wait for threads that wait for it.
    """
    indices, errors = iter(range(count)), []

    def inside() -> bool:
        return getattr(_HERE, "inside", False)

    def run(_=None) -> None:
        outer, _HERE.inside = inside(), True
        try:
            with torch.no_grad():
                task = worker()
                for index in indices:
                    if errors:
                        break
                    task(index)
        except BaseException as error:  # must not pass through the C library, nor get lost in it
            errors.append(error)
        finally:
            _HERE.inside = outer

    threads = 1 if inside() else min(torch.get_num_threads(), count)
    if threads <= 1:
        run()
    elif team := _team(os.getpid()):
        team(_FUNCTION(run), None, threads, 0)
    else:
        every = torch.get_num_threads()
        for future in [_pool(every, os.getpid()).submit(run) for _ in range(threads)]:
            future.result()
        torch.set_num_threads(every)  # the pool's own setting is also the default of threads yet to come
    if errors:
        raise errors[0]


def in_parts(work: Callable[[int, int, int], None], size: int) -> None:
    """Call ``work(first, last, part)`` for `size` things in as many equal parts as torch is set to use threads."""
    parts = max(1, min(torch.get_num_threads(), size))
    bounds = [size * part // parts for part in range(parts + 1)]
    each(lambda: lambda part: work(bounds[part], bounds[part + 1], part), parts)


@cache
def _team(process: int) -> Callable | None:
    """``GOMP_parallel(function, argument, threads, flags)`` of the library that torch works with, if it is there."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    if process != _PROCESS or not libraries:
        return None
    team = ctypes.CDLL(str(libraries[0])).GOMP_parallel
    team.argtypes, team.restype = (_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return team


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool per number of threads and process (threads do not survive a fork); it is kept, as are MKL's buffers."""
    return ThreadPoolExecutor(threads, "kernels", initializer=torch.set_num_threads, initargs=(1,))
