from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import Tensor, nn

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


def test_a_pass_on_the_cpu_ends_at_its_next_layer_forwards_and_backwards() -> None:
    interruption = Interruption()
    done: list[str] = []

    class Layer(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            done.append("forwards")
            given = images * 2
            given.register_hook(lambda _: done.append("backwards"))
            return given

    network = nn.Sequential(*(Layer() for _ in range(3)))
    images = torch.ones(1, requires_grad=True)
    with interruption.amid_passes(torch.device("cpu"), 0.0):
        output = network(images)
        interruption.requested = True
        with pytest.raises(Interrupted):
            output.sum().backward()
        assert done == ["forwards"] * 3 + ["backwards"]
        with pytest.raises(Interrupted):
            network(images)
        assert done[4:] == ["forwards"]
        # Who counts parameters, or scores nothing, is let alone.
        nn.Identity()(images.to("meta"))
    network(images)
    with interruption.amid_passes(torch.device("meta")):
        network(images)


def test_a_request_is_no_error_that_could_be_forgiven() -> None:
    assert not issubclass(Interrupted, Exception)


def test_without_a_limit_there_is_no_end() -> None:
    assert Interruption().seconds_left is None
    assert not Interruption().timed_out
