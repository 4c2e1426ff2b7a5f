"""Checks that a corpus far larger than memory is prepared and trained on in little memory.

    python -m tools.bench.large_corpus --folder=/tmp/large
    python -m tools.bench.large_corpus --folder=/tmp/large --tokens=10000000

It writes random text, a document a line (10^9 characters, 10^7 documents: 3.2 GB in the folder when
all is done), prepares it with `tools.prepare`, and trains a small model on it, once as documents
in shuffled order, once as one long text; then the same on a corpus of 10^6 characters. Every
measurement is a process of its own, taken in turn, and medians are shown. Files that are in the
folder already are not made again.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

import tbptt
from tbptt.streams import prepared
from tools.bench import small_model

FOLDER = flags.DEFINE_string("folder", None, "Folder for texts and corpora.")
TOKENS = flags.DEFINE_integer("tokens", 1_000_000_000, "Characters of the large corpus.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each corpus; medians are shown.")
PREPARED = flags.DEFINE_string("prepared", None, "Measure this corpus only, and print JSON.")
KIND = flags.DEFINE_enum("stream", "documents", ["documents", "text"], "Stream for --prepared.")

SMALL = 1_000_000
LINE = 100  # characters of a document, on average
BLOCK = 10_000_000
ROWS, WINDOW = 32, 32


def write_text(path: pathlib.Path, count: int) -> None:
    """Writes random letters, with a line end after `LINE` of them on average."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            text = rng.integers(ord("a"), ord("z") + 1, size, np.uint8)
            text[rng.integers(0, size, size // LINE)] = ord("\n")
            file.write(text.tobytes())


def prepare(text: pathlib.Path, out: pathlib.Path) -> None:
    """Runs `tools.prepare` and prints its time and memory."""
    command = [sys.executable, "-m", "tools.prepare", f"--out={out}", "--lines", str(text)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    usage = os.wait4(process.pid, 0)[2]  # of this process alone
    if not (out / prepared.ABOUT).exists():
        raise SystemExit(f"error: {' '.join(command)} failed.")
    seconds = time.perf_counter() - began
    about = json.loads((out / prepared.ABOUT).read_text("utf-8"))
    print(
        f"{out.name}: {about['tokens']:,} tokens in {about['documents']:,} documents prepared in "
        f"{seconds:.0f} s, {usage.ru_maxrss / 1024:.0f} MB resident at most",
        flush=True,
    )


def measure(folder: pathlib.Path, kind: str) -> dict[str, float]:
    """Trains on a corpus; returns ms a window, MB resident before and at most, seconds to open."""
    small_model.build()  # TensorFlow's own memory is resident before there is any corpus
    before, began = small_model.resident_mb(), time.perf_counter()
    corpus = prepared.open_corpus(folder)
    vocabulary, tokens, ends = corpus.vocabulary, corpus.tokens, corpus.ends
    stream: tbptt.DocumentStream | tbptt.ContiguousStream
    if kind == "documents":
        stream = tbptt.DocumentStream(
            tbptt.Segments(tokens, ends),
            rows=ROWS,
            window_length=WINDOW,
            vocabulary_size=small_model.VOCABULARY,
            boundary=vocabulary.boundary if vocabulary else None,
        )
    else:
        stream = tbptt.ContiguousStream(
            tokens, rows=ROWS, window_length=WINDOW, vocabulary_size=small_model.VOCABULARY
        )
    stream.windows(tbptt.Cursor(), 1)
    opened = time.perf_counter() - began
    return {"before_mb": before, "open_s": opened, **small_model.measure(stream)}


def main(argv: list[str]) -> None:
    """Makes both corpora and prints the table, or one measurement."""
    del argv
    if PREPARED.value:
        print(json.dumps(measure(pathlib.Path(PREPARED.value), KIND.value)))
        return
    if not FOLDER.value:
        sys.exit("error: --folder is missing: where to write.")
    folder = pathlib.Path(FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    corpora: dict[int, pathlib.Path] = {}
    for name, count in (("small", SMALL), ("large", TOKENS.value)):
        text, corpora[count] = folder / f"{name}.txt", folder / name
        if not text.exists() or text.stat().st_size != count:
            write_text(text, count)
        if not (corpora[count] / prepared.ABOUT).exists():
            prepare(text, corpora[count])
    cases = [(count, kind) for kind in ("documents", "text") for count in corpora]
    found: dict[tuple[int, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(ROUNDS.value):
        for count, kind in cases:
            command = [sys.executable, "-m", "tools.bench.large_corpus"]
            command += [f"--prepared={corpora[count]}", f"--stream={kind}"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[count, kind].append(json.loads(output))
    print("| corpus | ms a window | MB resident, and of these before | s to open |")
    print("|---|---:|---:|---:|")
    for (count, kind), runs in found.items():
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        print(
            f"| {count:,} characters, {kind} | {median['ms']:.2f} | {median['resident_mb']:.0f}, "
            f"{median['before_mb']:.0f} | {median['open_s']:.1f} |"
        )


if __name__ == "__main__":
    app.run(main)
