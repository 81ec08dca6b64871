"""Independent calls at once."""

import threading
import traceback

import pytest
import torch

from thalweg.train import overlap
from thalweg.train.overlap import concurrently


@pytest.fixture
def two(monkeypatch):
    """Room for two calls at a time, on a machine of any size."""
    monkeypatch.setattr(overlap, "_processors", lambda: 2)


def test_results_come_in_order_of_calls_that_run_at_once(two):
    barrier = threading.Barrier(2, timeout=60)  # which one after the other would never pass

    def call(i):
        barrier.wait()
        return i, threading.get_ident()

    found = concurrently([lambda i=i: call(i) for i in range(4)])
    assert [i for i, _ in found] == [0, 1, 2, 3]
    assert len({thread for _, thread in found}) == 2
    assert threading.get_ident() not in {thread for _, thread in found}


def test_threads_of_torch_are_shared_out_and_given_back(two):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        assert concurrently([torch.get_num_threads] * 2) == [3, 3]
        assert torch.get_num_threads() == 6
        torch.set_num_threads(1)
        assert concurrently([torch.get_num_threads] * 3) == [1, 1, 1]
    finally:
        torch.set_num_threads(before)


def test_gradients_are_recorded_as_for_the_caller(two):
    x = torch.ones(2, requires_grad=True)
    calls = [lambda: (2 * x).requires_grad] * 2
    assert concurrently(calls) == [True, True]
    with torch.no_grad():
        assert concurrently(calls) == [False, False]
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert concurrently([torch.is_inference_mode_enabled] * 2) == [True, True]


def test_the_first_error_is_raised_when_all_have_ended(two):
    failed, ended = threading.Event(), []

    def last():
        assert failed.wait(60)
        ended.append("last")

    def fails(error):
        failed.set()
        raise error

    before = torch.get_num_threads()
    calls = [last, lambda: fails(KeyError("one")), lambda: fails(ValueError("two")), last]
    with pytest.raises(KeyError, match="one") as caught:
        concurrently(calls)
    assert ended == ["last", "last"]
    assert "fails" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert torch.get_num_threads() == before


def test_one_or_none(two):
    assert concurrently([]) == []
    assert concurrently([threading.get_ident]) == [threading.get_ident()]
