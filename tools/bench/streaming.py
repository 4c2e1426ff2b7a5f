"""Measures a `Streamer`: one step of one session, and one step of each of many sessions.

    python -m tools.bench.streaming

The model is an LSTM over bytes: 256 symbols, an embedding, 512 units and a softmax. One session's
step goes in and out of the streamer; beside it stand the same step of PyTorch, in a loop under
`torch.inference_mode` (left out where PyTorch is not installed), and the step's matrix products
alone, by NumPy. Many sessions that send one step each are compared with the compiled evaluation of
windows of as many rows. All are measured in turn; medians over the rounds are shown.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

import tbptt
from tbptt.serving.streamer import Streamer

HIDDEN = flags.DEFINE_integer("units", 512, "Units of the LSTM, and size of the embedding.")
SESSIONS = flags.DEFINE_integer("sessions", 1000, "Sessions that send a step each.", lower_bound=2)
STEPS = flags.DEFINE_integer("steps", 500, "Steps of one session in a round.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds; medians are shown.", lower_bound=1)
SYMBOLS, WINDOW = 256, 32


def build(units: int) -> tbptt.LanguageModel:
    """Builds a language model over bytes: embedding, LSTM and softmax of so many units."""
    seeds = tbptt.split_seed(tbptt.make_seed(0), 2)
    core = tbptt.LSTM(units, units, seed=seeds[0])
    return tbptt.LanguageModel(SYMBOLS, units, core, seed=seeds[1])


def streamed(model: tbptt.LanguageModel) -> Callable[[int], None]:
    """Returns a function that feeds so many steps of one session, one at a time."""
    streamer = Streamer(model, chunk_sizes=(1,), batch_sizes=(1,))
    streamer.open("one")
    ids = [np.array([k % SYMBOLS]) for k in range(SYMBOLS)]

    def run(steps: int) -> None:
        for k in range(steps):
            streamer.feed("one", ids[k % SYMBOLS])

    return run


def products(units: int) -> Callable[[int], None]:
    """Returns a function that multiplies what so many steps multiply, and does nothing else."""
    rng = np.random.default_rng(0)
    x, h = (rng.normal(size=[1, units]).astype(np.float32) for _ in range(2))
    w_x, w_h = (rng.normal(size=[units, 4 * units]).astype(np.float32) for _ in range(2))
    w = rng.normal(size=[units, SYMBOLS]).astype(np.float32)

    def run(steps: int) -> None:
        for _ in range(steps):
            x @ w_x, h @ w_h, h @ w

    return run


def torch_steps(units: int) -> Callable[[int], None]:
    """Returns a function that runs so many steps of `torch.nn.LSTM`, one at a time."""
    import torch

    embedding = torch.nn.Embedding(SYMBOLS, units)
    lstm, readout = torch.nn.LSTM(units, units), torch.nn.Linear(units, SYMBOLS)
    state = (torch.zeros(1, 1, units), torch.zeros(1, 1, units))

    def run(steps: int) -> None:
        nonlocal state
        with torch.inference_mode():
            for k in range(steps):
                outputs, state = lstm(embedding(torch.tensor([[k % SYMBOLS]])), state)
                readout(outputs[0]).numpy()

    return run


def many(model: tbptt.LanguageModel, sessions: int) -> Callable[[int], None]:
    """Returns a function that feeds so many steps of each session, one at a time."""
    streamer = Streamer(model, capacity=sessions, chunk_sizes=(1,), batch_sizes=(sessions,))
    names = [str(k) for k in range(sessions)]
    for name in names:
        streamer.open(name)
    step = {name: np.array([k % SYMBOLS]) for k, name in enumerate(names)}

    def run(steps: int) -> None:
        for _ in range(steps):
            streamer.feed_many(step)

    return run


def evaluated(model: tbptt.LanguageModel, rows: int) -> Callable[[int], None]:
    """Returns a function that evaluates windows of 32 steps of so many rows, compiled."""
    tokens = np.arange(rows * WINDOW + 1) % SYMBOLS
    stream = tbptt.ContiguousStream(
        tokens, rows=rows, window_length=WINDOW, vocabulary_size=SYMBOLS
    )
    evaluate = tbptt.Evaluator(model, stream)

    def run(steps: int) -> None:
        for _ in range(steps // WINDOW):
            evaluate()

    return run


def measure(
    contestants: dict[str, tuple[Callable[[int], None], int]], rounds: int
) -> dict[str, float]:
    """Returns the median seconds a step of each, in turn; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, (run, steps) in contestants.items():
            began = time.perf_counter()
            run(steps)
            if number:
                seconds[name].append((time.perf_counter() - began) / steps)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main(argv: list[str]) -> None:
    """Measures both, and prints a table of each."""
    del argv
    units, steps, sessions = HIDDEN.value, STEPS.value, SESSIONS.value
    model = build(units)
    alone = {"streamer": (streamed(model), steps), "products alone": (products(units), steps)}
    if importlib.util.find_spec("torch"):
        alone["torch"] = (torch_steps(units), steps)
    found = measure(alone, ROUNDS.value)
    print(f"| one step of one session, {units} units | us | streamer / it |\n|---|---|---|")
    for name, second in found.items():
        print(f"| {name} | {second * 1e6:.0f} | {found['streamer'] / second:.2f} |")
    together = {
        "streamer": (many(model, sessions), max(1, WINDOW // 4)),
        "evaluation": (evaluated(model, sessions), WINDOW),
    }
    found = measure(together, ROUNDS.value)
    print(f"\n| a step of each of {sessions:,} sessions | steps/s | share |\n|---|---|---|")
    for name, second in found.items():
        share = found["evaluation"] / second
        print(f"| {name} | {sessions / second:,.0f} | {share:.2f} |")


if __name__ == "__main__":
    app.run(main)
