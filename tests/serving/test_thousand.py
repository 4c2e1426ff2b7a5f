"""A thousand operations in random order on a `Streamer`, beside a plain model in NumPy."""

import collections
import copy
import dataclasses
from typing import Any

import numpy as np
import pytest

import tbptt
from tbptt import testing
from tbptt.serving.streamer import Streamer
from tests.layers.test_equations import lstm_by_gates

SEEDS = tbptt.split_seed(tbptt.make_seed(8), 2)
NAMES = "abcd"


@dataclasses.dataclass
class Plain:
    """A session of a plain model: the chunks that it has read, and the state after them."""

    hidden: Any = dataclasses.field(default_factory=lambda: np.zeros([1, 4], np.float32))
    cell: Any = dataclasses.field(default_factory=lambda: np.zeros([1, 4], np.float32))
    chunks: tuple = ()
    marks: dict = dataclasses.field(default_factory=dict)

    def feed(self, model, chunk):
        x = model.embedding.table.numpy()[chunk][:, None]
        h, self.hidden, self.cell = lstm_by_gates(model.core, x, self.hidden, self.cell)
        self.chunks += (chunk,)
        return h[:, 0] @ model.readout.w.numpy() + model.readout.b.numpy()

    def put_back(self, other):
        self.hidden, self.cell, self.chunks = other.hidden, other.cell, other.chunks


class Pair:
    """The same operations on a streamer and on plain sessions, compared at every feed."""

    def __init__(self, streamer, model, rng, folder):
        self.streamer, self.model, self.rng, self.folder = streamer, model, rng, folder
        self.plain: dict[str, Plain] = {}

    def chunk(self):
        return self.rng.integers(0, 7, self.rng.integers(1, 6))

    def open(self, name):
        self.streamer.open(name)
        self.plain[name] = Plain()

    def feed(self, name):
        others = [n for n in self.plain if self.rng.random() < 0.3]
        chunks = {n: self.chunk() for n in dict.fromkeys([name, *others])}
        found = self.streamer.feed_many(chunks)
        for n, chunk in chunks.items():
            testing.assert_close(found[n], self.plain[n].feed(self.model, chunk), law=10)

    def fork(self, name):
        free = [n for n in NAMES if n not in self.plain]
        if free:
            self.streamer.fork(name, free[0])
            self.plain[free[0]] = copy.copy(self.plain[name])
            self.plain[free[0]].marks = {}

    def mark(self, name):
        mark = self.rng.choice(["here", "there"])
        self.streamer.mark(name, mark)
        self.plain[name].marks[mark] = copy.copy(self.plain[name])

    def rollback(self, name):
        if marks := self.plain[name].marks:
            mark = self.rng.choice(sorted(marks))
            self.streamer.rollback(name, mark)
            self.plain[name].put_back(marks[mark])

    def evict(self, name):
        self.streamer.evict(name)

    def evict_to_disk(self, name):
        self.streamer.evict(name, self.folder)

    def restore(self, name):
        """Brings the state back by setting it, as after a restart."""
        self.streamer.set_state(name, self.streamer.state(name))

    def reset(self, name):
        self.streamer.reset(name)
        self.plain[name].put_back(Plain())

    def close(self, name):
        self.streamer.close(name)
        del self.plain[name]


TURNS = ["feed"] * 5 + ["fork", "mark", "rollback", "evict", "evict_to_disk", "restore"] * 2
TURNS += ["reset", "close"]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_thousand_operations_leave_every_session_as_if_it_were_alone(tmp_path, jit_compile):
    """Close to NumPy at every feed; the bits of a session that was fed the same chunks alone."""
    core = tbptt.LSTM(3, 4, seed=SEEDS[0])
    model = tbptt.LanguageModel(7, 3, core, seed=SEEDS[1])
    sizes = dict(chunk_sizes=(3, 1), batch_sizes=(3,), jit_compile=jit_compile)
    streamer, lone = (Streamer(model, capacity=n, **sizes) for n in (4, 1))
    rng = np.random.default_rng(3)
    pair, done = Pair(streamer, model, rng, tmp_path), collections.Counter()

    def check(name):
        lone.open("alone")
        for chunk in pair.plain[name].chunks:
            lone.feed("alone", chunk)
        found = streamer.state(name)
        testing.assert_same_bits(found, lone.state("alone"), what=f"the state of {name}")
        expected = [pair.plain[name].hidden, pair.plain[name].cell]
        testing.assert_close([found.hidden, found.cell], expected, law=10)
        lone.close("alone")

    for turn in range(1000):
        name = str(rng.choice(list(NAMES)))
        do = "open" if name not in pair.plain else str(rng.choice(TURNS))
        where = {info.name: info.where for info in streamer.sessions()}.get(name)
        getattr(pair, do)(name)
        done[do] += 1
        done[f"{do} while {'evicted' if where not in (None, 'row') else 'there'}"] += 1
        if turn % 100 == 99:
            for each in pair.plain:
                check(each)
    for do in {*TURNS} - {"evict", "evict_to_disk"}:
        assert min(done[f"{do} while evicted"], done[f"{do} while there"]) > 5, (do, done)
    assert min(done["evict"], done["evict_to_disk"]) > 50
    steps = {info.name: info.steps for info in streamer.sessions()}
    assert steps == {n: sum(map(len, one.chunks)) for n, one in pair.plain.items()}
    for name in tuple(pair.plain):
        pair.close(name)
    assert not list(tmp_path.iterdir())  # files of sessions are removed with them
    assert streamer.traces <= 2


@pytest.mark.parametrize("what", ["_state_of", "_write"])
def test_a_streamer_that_loses_a_bit_is_found(tmp_path, monkeypatch, what):
    """The test above can fail: a state that is one bit off, when it is copied or put back."""
    whole = getattr(Streamer, what)

    def off(streamer, session, *arguments):
        if what == "_state_of":
            return [np.nextafter(leaf, np.float32(2)) for leaf in whole(streamer, session)]
        name, state = arguments
        return whole(streamer, session, name, [np.nextafter(x, np.float32(2)) for x in state])

    monkeypatch.setattr(Streamer, what, off)
    with pytest.raises(testing.LawError, match="the state of"):
        test_a_thousand_operations_leave_every_session_as_if_it_were_alone(tmp_path, False)
