"""Loops run on torch's own threads: every index once, one core each, errors come back, forks are safe."""

import multiprocessing
import threading
from itertools import pairwise

import pytest
import torch

from screpro.kernels import threads
from screpro.kernels.threads import each, in_parts


@pytest.fixture(params=["torch's team", "pool"])
def two_threads(request, monkeypatch):
    if request.param == "pool":
        monkeypatch.setattr(threads, "_team", lambda process: None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_every_index_is_done_once(two_threads, count):
    done = []
    each(lambda: done.append, count)
    assert sorted(done) == list(range(count))
    assert torch.get_num_threads() == 2


def test_two_threads_work_at_a_time_and_each_of_them_alone(two_threads):
    meeting, seen = threading.Barrier(2, timeout=30), []

    def task(index: int) -> None:
        meeting.wait()  # one thread alone would wait for ever
        # a product inside the loop gets no threads of its own: with them this would hang or slow down, not fail
        a = torch.randn(300, 300)
        seen.append((threading.get_ident(), torch.is_grad_enabled(), bool((a @ a).isfinite().all())))

    each(lambda: task, 2)
    assert len({who for who, *_ in seen}) == 2
    assert [(grad, finite) for _, grad, finite in seen] == [(False, True)] * 2


@pytest.mark.parametrize("size", [0, 1, 2, 3, 10])
def test_parts_cover_everything_in_order(two_threads, size):
    parts = []
    in_parts(lambda first, last, part: parts.append((part, first, last)), size)
    parts.sort()
    assert [p for p, *_ in parts] == list(range(max(1, min(2, size))))
    assert parts[0][1] == 0 and parts[-1][2] == size
    assert all(a[2] == b[1] for a, b in pairwise(parts))


def test_an_error_is_raised_and_the_threads_serve_again(two_threads):
    def task(index: int) -> None:
        if index == 3:
            raise ValueError("the fourth")

    with pytest.raises(ValueError, match="the fourth"):
        each(lambda: task, 10)
    done = []
    each(lambda: done.append, 4)
    assert sorted(done) == [0, 1, 2, 3]


def test_loops_inside_loops_stay_on_their_thread(two_threads):
    done = []

    def outer(i: int) -> None:
        own = threading.get_ident()
        each(lambda: lambda j: done.append((i, j, threading.get_ident() == own)), 3)

    for _ in range(20):  # a pool's threads differ in what torch tells them, depending on who set it last
        done.clear()
        each(lambda: outer, 4)
        assert sorted(done) == [(i, j, True) for i in range(4) for j in range(3)]


def _in_child(answers) -> None:
    done = []
    each(lambda: done.append, 4)
    answers.put(sorted(done))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_a_forked_process_does_not_wait_for_threads_that_it_did_not_inherit(two_threads):
    each(lambda: lambda index: None, 4)  # the team of this process exists
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(answers,))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert answers.get() == [0, 1, 2, 3]
