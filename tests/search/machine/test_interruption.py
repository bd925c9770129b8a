from __future__ import annotations

import os
import signal

import pytest

from search.machine.interruption import Interrupted, Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_clean_end_and_a_second_one_insists(number: signal.Signals) -> None:
    interruption = Interruption()
    before = signal.getsignal(number)
    with interruption.handling_signals():
        interruption.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="by the user"):
            interruption.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert interruption.must_stop
    assert signal.getsignal(number) is before


def test_the_time_limit_ends_a_trial() -> None:
    assert not Interruption(60).must_stop
    late = Interruption(0)
    assert late.timed_out
    with pytest.raises(Interrupted, match="time limit"):
        late.check()


def test_without_a_limit_there_is_no_end() -> None:
    assert Interruption().seconds_left is None
    assert not Interruption().timed_out
