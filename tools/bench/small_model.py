"""Builds the small character model that flatness, large_corpus and soak train."""

import pathlib
import resource
import statistics
import time

import numpy as np

import tbptt
from tbptt import optimizers
from tbptt.streams.prepared import open_tokens
from tbptt.streams.rows import RowStream

VOCABULARY = 256


def write_tokens(path: pathlib.Path, count: int) -> None:
    """Writes random tokens to a file, one block at a time."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, count, 10_000_000):
            size = min(10_000_000, count - start)
            file.write(rng.integers(0, VOCABULARY, size, np.uint16).tobytes())


def open_stream(
    path: pathlib.Path, *, rows: int, window_length: int, tail: str = "drop"
) -> tbptt.ContiguousStream:
    """Opens a stream of the tokens that `write_tokens` wrote, left on the disk."""
    return tbptt.ContiguousStream(
        open_tokens(path),
        rows=rows,
        window_length=window_length,
        vocabulary_size=VOCABULARY,
        tail=tail,
    )


def build(
    *,
    embedding: int = 32,
    hidden: int = 64,
    optimizer: optimizers.GradientTransform | None = None,
) -> tbptt.Trainer:
    """Builds a trainer for one LSTM layer between embedding and readout; plain SGD by default."""
    seeds = tbptt.split_seed(tbptt.make_seed(0), 2)
    core = tbptt.LSTM(embedding, hidden, seed=seeds[0])
    model = tbptt.LanguageModel(VOCABULARY, embedding, core, seed=seeds[1])
    return tbptt.Trainer(model, optimizer or optimizers.sgd(0.1))


def resident_mb() -> float:
    """Returns the largest resident memory of this process so far, in MB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(stream: RowStream, calls: int = 40) -> dict[str, float]:
    """Trains on a stream; returns ms a window, feeding included, and MB resident at most.

    Args:
      stream: to train on.
      calls: of 20 windows; the first eighth of them is not counted.
    """
    trainer = build()
    feed = tbptt.PrefetchFeed(stream, 20)
    loop_state, cursor = trainer.initial_loop_state(stream.rows), tbptt.Cursor()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        chunk, cursor = feed.take(cursor, 20)
        loop_state, metrics = trainer(loop_state, chunk)
        metrics.read()
        times.append((time.perf_counter() - began) / 20 * 1e3)
    return {"ms": statistics.median(times[calls // 8 :]), "resident_mb": resident_mb()}
