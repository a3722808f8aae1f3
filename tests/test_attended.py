"""Calls that may block for long: what is left of one that was made, or left."""

import threading
import time
import weakref

import pytest

from resshift_core.attended import Attended


class Answer:
    pass


def soon(true) -> bool:
    """Whether it comes true within a few seconds."""
    return any(true() or time.sleep(0.01) for _ in range(500))


def test_its_thread_makes_the_calls_and_ends_with_it():
    with Attended(lambda: None, 1) as attended:
        thread = attended(threading.current_thread)
        assert thread not in (threading.current_thread(), threading.main_thread()) and thread.is_alive()
        with pytest.raises(ZeroDivisionError):
            attended(divmod, 1, 0)
        assert attended(divmod, 7, 2) == (3, 1)
    assert soon(lambda: not thread.is_alive())


def test_an_answer_is_let_go_of():
    with Attended(lambda: None, 1) as attended:
        answer = weakref.ref(attended(Answer))
        assert soon(lambda: answer() is None)
