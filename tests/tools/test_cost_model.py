"""The cost model by hand, and that it is compared with what was measured."""

import math

import pytest

from tools.bench import cost_model
from tools.bench.contestants import SIZES, Size, build_ours
from tools.bench.cost_model import Level, Machine, Measured
from tools.bench.workers import Worker
from tools.cluster import free_addresses, tf_config

TINY = Size(4, 6, 5, 8, layers=2, vocabulary=11, windows_per_call=3)


def test_a_ring_sends_each_share_round_twice():
    """Of 4 members: 3 exchanges of a quarter to add up, 3 to tell; none where there is one."""
    ring = [Level(4, bandwidth=2.0, latency=0.5)]
    assert cost_model.reduce_seconds(ring, 8.0) == 6 * (0.5 + 8.0 / 4 / 2.0)
    assert cost_model.reduce_seconds([Level(1, 1.0, 1.0)], 8.0) == 0


def test_levels_pass_on_a_share():
    """Two hosts of two: within a host 8 bytes, among hosts 4 of each member."""
    levels = [Level(2, 4.0, 0.0), Level(2, 1.0, 1.0)]
    assert cost_model.reduce_seconds(levels, 8.0) == 2 * (4.0 / 4.0) + 2 * (1.0 + 2.0 / 1.0)


def test_cost_of_a_window():
    machine = Machine(flops=1e6, share=0.5, step=0.1, dispatch=0.25, levels=(Level(2, 1e3, 0.0),))
    told = cost_model.cost(TINY, machine, wire_bytes=2)
    assert told.compute == pytest.approx(TINY.product_flops / 0.5e6 + 2 * 6 * 2 * 0.1)
    assert told.reduce == pytest.approx(2 * TINY.parameters / 1e3)
    assert told.window == told.compute + 0.25 + told.reduce
    assert told.efficiency == told.compute / told.window
    assert machine.replicas == 2


def test_parameters_are_counted_as_they_are():
    trainer, *_ = build_ours(TINY)
    trained = trainer.model.trainable_variables
    assert sum(math.prod(parameter.shape) for parameter in trained) == TINY.parameters


def test_every_machine_is_predicted():
    text = cost_model.predictions(["char", "huge"], cost_model.MACHINES, 4)
    assert len(text.splitlines()) == 2 + 2 * len(cost_model.MACHINES)
    assert "| char | 32 hosts of 8 GPUs | 256 |" in text


def test_a_machine_of_ones_own():
    machine = cost_model.own_machine(["8:450:4", "32:50:0.5"], 1e12)
    assert machine.levels == (Level(8, 450e9, 4e-6), Level(32, 50e9, 5e-7))
    assert machine.flops == 1e12
    for wrong in ("8", "8:1", "0:1:1", "2.5:1:1", "8:0:1", "8:1:-1", "a:b:c"):
        with pytest.raises(ValueError, match="must be members:GB/s:microseconds, as 8:450:3"):
            cost_model.own_machine([wrong], 1e12)


class FakeWorker:
    """Takes 2 seconds a window, and 1 more if it is one of several that know each other."""

    made: list = []  # noqa: RUF012  (emptied by the test)

    def __init__(self, name, size, *, timeout, environment):
        self.name, self.asked, self.closed = name, None, False
        self.together = "TF_CONFIG" in environment
        assert environment["TF_NUM_INTRAOP_THREADS"] == "1"
        self.made.append(self)

    def ask(self, windows):
        self.asked = windows

    def answer(self):
        return dict(seconds=(self.asked or 0) * (3.0 if self.together else 2.0))

    def close(self):
        self.closed = True


def test_all_take_turns_and_are_closed(monkeypatch):
    FakeWorker.made = []
    monkeypatch.setattr(cost_model, "Worker", FakeWorker)
    found = cost_model.measure(TINY, 2, rounds=3, windows=5, timeout=1.0)
    names = [worker.name for worker in FakeWorker.made]
    assert sorted(names) == sorted(
        ["ours-auto", "alone", "alone", "worker", "worker", *["reduce", "reduce-nothing"] * 2]
    )
    assert all(worker.closed for worker in FakeWorker.made)
    assert found.one == found.apart[1] == found.apart[2] == [2.0] * 3
    assert found.together == {2: [3.0] * 3}
    assert found.reduce == found.nothing == [3.0] * 3


def test_workers_train_together():
    """Each on its rows: both know the loss of all, and each window makes it smaller."""
    addresses = free_addresses(2)
    workers = []
    for index in (0, 1):
        environment = cost_model.ENVIRONMENT | {"TF_CONFIG": tf_config(addresses, index)}
        workers.append(Worker("worker", TINY, timeout=200, environment=environment))
    losses = []
    for windows in (0, 3, 3):
        for worker in workers:
            if windows:
                worker.ask(windows)
        one, other = (worker.answer()["loss"] for worker in workers)
        assert one == other
        losses.append(one)
    for worker in workers:
        worker.close()
    assert losses[0] == pytest.approx(math.log(TINY.vocabulary), abs=0.2)
    assert losses[2] < losses[1]


def test_the_model_is_compared_with_what_was_found():
    """One process takes 100 ms, two 125, of which 10 are the sum; four share two cores."""
    found = Measured(
        one=[0.1] * 3,
        apart={1: [0.105] * 3, 2: [0.11] * 3, 4: [0.22] * 3},
        together={2: [0.125] * 3, 4: [0.25] * 3},
        reduce=[0.012] * 3,
        nothing=[0.002] * 3,
    )
    size_bytes = 10**6
    bandwidth, latency = cost_model.link(found, size_bytes)
    assert (bandwidth, latency) == (pytest.approx(1e8), 0.001)
    lines = cost_model.comparison(found, size_bytes, cores=2).splitlines()
    assert lines[0].endswith("100.0 ms a window; by the program of many replicas 1.050 of it.")
    assert lines[-2] == "| 2 | 125.0 | 117.0 | 0.94 | 0.80 | 110.0 | 12.0% |"
    ring = 6 * (0.001 + size_bytes / 4 / 1e8)
    assert lines[-1].startswith(f"| 4 | 250.0 | {2 * (105 + ring * 1e3):.1f} |")


def test_sizes_are_those_of_the_benchmark():
    assert SIZES["char"].parameters == 256 * 128 + 4 * 512 * (128 + 512 + 1) + 513 * 256
