"""Lets a trained model write: text on the screen while it is made, or music into a MIDI file.

    python -m tools.sample --prompt="The "
    python -m tools.sample --logdir=runs/mine --samples=3 --temperature=0.7 --top_p=0.95
    python -m tools.sample --logdir=runs/mine --prompt="import " --beam=8 --length=20
    python -m tools.sample --logdir=runs/music --midi=chorale.mid --prompt=3 --length=64

--logdir is a run, or an export of `tools.export`; without it, the newest finished run below `runs`.
The same command writes the same text; --seed gives another one. Ctrl-C ends it. A run of
`experiments.music` goes on with a piece of its test part, --prompt is the number, or with a MIDI
file, --prompt is the path.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np
from absl import app, flags

from experiments import midi, music
from tbptt.serving.beam import beam_search
from tbptt.serving.exports import ExportedModel, open_export
from tbptt.serving.exports.description import DESCRIPTION
from tbptt.serving.load import LoadedRun, load
from tbptt.serving.sampling import Sampler, Sampling
from tbptt.serving.streamer import Streamer
from tbptt.serving.text import TextDecoder, encode_prompt, unknown_tokens
from tbptt.streams.corpus import Vocabulary
from tools.runs import RUNS, newest_run

PIECE = 8  # tokens that are drawn before they are shown
FRAMES = 32  # of a piece of the test part, which the model reads before it goes on

LOGDIR = flags.DEFINE_string(
    "logdir", "", "The folder of a run, or of an export; empty: the newest run."
)
PROMPT = flags.DEFINE_string(
    "prompt", "", "The beginning of the text; empty: a new line. With --midi: a number or a file."
)
LENGTH = flags.DEFINE_integer("length", 500, "Tokens, or frames, to write at most.", lower_bound=1)
SAMPLES = flags.DEFINE_integer("samples", 1, "Texts to write, one after another.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives another text.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Below 1 less random, above 1 more.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draws from so many tokens only; 0: all; 1: the first.")
TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draws only from the likeliest tokens, which together have this probability."
)
MIN_P = flags.DEFINE_float(
    "min_p", 0.0, "Draws only from tokens that are at least this part as likely as the likeliest."
)
PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Above 1: tokens that the text has already get less probable."
)
STOP = flags.DEFINE_string(
    "stop", "", r"The text ends at one of these characters, or words; \n is the end of a line."
)
BEAM = flags.DEFINE_integer(
    "beam", 0, "Searches the most probable texts in a beam of this width, and draws none."
)
LENGTH_PENALTY = flags.DEFINE_float(
    "length_penalty", 1.0, "With --beam and --stop: 0 prefers short texts, 1 compares means."
)
MIDI = flags.DEFINE_string("midi", "", "The MIDI file that a run of music writes.")
OF_TEXT = ("samples", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "beam")
OF_DRAWING = ("samples", "seed", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def open_run(folder: pathlib.Path) -> LoadedRun:
    """Opens a run, or an export, for which TensorFlow's functions then run step by step.

    Raises:
      ValueError: the folder holds neither, or it is damaged.
    """
    if not (folder / DESCRIPTION).exists():
        return load(folder)
    export = open_export(folder)
    import tensorflow as tf  # here, because tbptt is to import it first, in silence

    tf.config.run_functions_eagerly(True)  # see ExportedModel
    result = export.description["result"]
    return LoadedRun(ExportedModel(export), export.preprocessing, {}, result, folder)


def vocabulary_of(run: LoadedRun) -> Vocabulary:
    """Returns the vocabulary of a run of a language model; raises ValueError if it has none."""
    vocabulary = run.preprocessing.get("vocabulary")
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    if run.settings.get("experiment") == "music":
        raise ValueError(
            f"The run in {str(run.folder)!r} is of music. Give the file to write as --midi."
        )
    raise ValueError(
        f"The run in {str(run.folder)!r} has no vocabulary, so its model does not write text. Give "
        "the folder of a language model as --logdir."
    )


def stop_tokens(vocabulary: Vocabulary, text: str) -> list[int]:
    """Returns the ids of all characters, bytes or words of a text, where `\\n` ends a line."""
    text = text.replace("\\n", "\n").replace("\\t", "\t")
    return sorted({int(i) for i in encode_prompt(vocabulary, text)}) if text else []


def begin(vocabulary: Vocabulary, prompt: str) -> tuple[str, list[int], TextDecoder]:
    """Returns the prompt as it is read, its ids, and a decoder of the text that follows."""
    ids = [int(i) for i in encode_prompt(vocabulary, prompt)]
    if not prompt:
        return "", ids, TextDecoder(vocabulary, before=ids)
    decoder = TextDecoder(vocabulary)
    return decoder(ids), ids, decoder


def write_samples(
    model: Any,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    out: TextIO,
    *,
    sampling: Sampling,
    samples: int = 1,
    seed: int = 0,
    stop: Sequence[int] = (),
) -> None:
    """Writes samples to `out`, one after another, each while it is drawn.

    Args:
      model: reads ids and gives logits, see `Sampler`.
      vocabulary: of the model.
      prompt: the beginning of each.
      length: tokens of each at most.
      out: a text file, as the terminal.
      sampling, stop: see `Sampler`.
      samples: how many.
      seed: sample k has the seed `[k, seed]`.

    Raises:
      ValueError: the prompt or an argument cannot be used.
    """
    # One row a program, so that a sample is the same however many others are asked for.
    sampler = Sampler(model, most=PIECE, rows=1, jit_compile=False)
    for k in range(samples):
        read, ids, decoder = begin(vocabulary, prompt)
        pieces = sampler.write(ids, length, [[k, seed]], sampling, stop=stop)
        out.write((f"--- {k + 1} of {samples} ---\n" if samples > 1 else "") + read)
        for piece in pieces:
            drawn = piece[piece >= 0]
            out.write(decoder(drawn))
            out.flush()
            if len(drawn) < len(piece):
                break
        out.write(decoder.end() + "\n")


def write_beam(
    model: Any,
    vocabulary: Vocabulary,
    prompt: str,
    length: int,
    out: TextIO,
    *,
    width: int,
    stop: Sequence[int] = (),
    length_penalty: float = 1.0,
) -> None:
    """Writes the texts that a beam search finds to `out`, that of the best score first."""
    sizes = tuple(2**k for k in range(0, width.bit_length() + 1, 2))
    streamer = Streamer(model, capacity=width, batch_sizes=sizes, jit_compile=False)
    _, ids, _ = begin(vocabulary, prompt)
    found = beam_search(
        streamer, ids, length, width=width, stop=stop, length_penalty=length_penalty
    )
    for k, one in enumerate(found):
        read, _, decoder = begin(vocabulary, prompt)
        out.write(
            f"--- {k + 1} of {len(found)}: {len(one.tokens)} tokens of log probability "
            f"{one.log_probability:.2f} ---\n{read}{decoder(one.tokens)}{decoder.end()}\n"
        )


def piece_of(run: LoadedRun, prompt: str) -> np.ndarray:
    """Returns the frames `[N, keys]` that a model of music reads before it goes on.

    Args:
      run: of `experiments.music`.
      prompt: the path of a MIDI file; or the number of a piece of the test part, empty: 0, of which
        the first frames are taken.

    Raises:
      ValueError: there is no such file or piece.
    """
    keys = run.settings["keys"]
    if prompt and not prompt.isdecimal():
        return midi.read_midi(prompt, keys)
    pieces, number = music.load(run.settings["data"], keys)["test"], int(prompt or 0)
    if number >= len(pieces):
        raise ValueError(
            f"--prompt={number} is no piece: the test part has {len(pieces)}, 0 to "
            f"{len(pieces) - 1}. Give one of them, or the path of a MIDI file."
        )
    begin, length = pieces.begins[number], pieces.lengths[number]
    return pieces.values[begin : begin + min(length, FRAMES)]


def write_music(run: LoadedRun, prompt: str, path: str, out: TextIO, **options: Any) -> None:
    """Writes a piece and its continuation to a MIDI file; `options` are of `continue_piece`."""
    if run.settings.get("experiment") != "music":
        raise ValueError(
            f"The run in {str(run.folder)!r} is not of experiments.music, so --midi has no effect."
        )
    piece = piece_of(run, prompt)
    frames = midi.continue_piece(run.model, piece, **options)
    midi.write_midi(path, np.concatenate([piece, frames]))
    out.write(f"{path}: {len(piece)} frames that were given, and {len(frames)} that go on.\n")


def check_flags() -> None:
    """Raises ValueError for flags that have no effect together."""
    for name, flag, others in (("midi", MIDI, OF_TEXT), ("beam", BEAM, OF_DRAWING)):
        given = [other for other in others if flags.FLAGS[other].present]
        if flag.value and given:
            raise ValueError(
                f"With --{name} the flag --{given[0]} has no effect. Leave one of the two out."
            )


def run_flags(out: TextIO) -> None:
    """Does what the flags say; raises ValueError if they do not fit."""
    check_flags()
    sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, MIN_P.value, PENALTY.value)
    run = open_run(pathlib.Path(LOGDIR.value) if LOGDIR.value else newest_run(RUNS))
    if not LOGDIR.value:
        print(f"The run in {run.folder}:\n", file=sys.stderr)
    prompt, length, seed = PROMPT.value, LENGTH.value, SEED.value
    if MIDI.value:
        temperature = TEMPERATURE.value if flags.FLAGS["temperature"].present else 1.0
        options = dict(length=length, seed=seed, temperature=temperature)
        write_music(run, prompt, MIDI.value, out, **options)
        return
    vocabulary = vocabulary_of(run)
    unknown = unknown_tokens(vocabulary, prompt)
    if unknown and vocabulary.unknown is not None:
        told, read_as = ", ".join(map(repr, unknown[:10])), vocabulary.tokens[vocabulary.unknown]
        print(f"The model does not know {told}: read as {read_as!r}.", file=sys.stderr)
    what, stop = (run.model, vocabulary, prompt, length, out), stop_tokens(vocabulary, STOP.value)
    if BEAM.value:
        write_beam(*what, width=BEAM.value, stop=stop, length_penalty=LENGTH_PENALTY.value)
    else:
        write_samples(*what, samples=SAMPLES.value, seed=seed, sampling=sampling, stop=stop)


def show_no_more() -> None:
    """Lets the interpreter flush its standard output to nowhere, because nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str]) -> None:
    """Writes text to the standard output, or music to a file."""
    if len(argv) > 1:
        sys.exit(f"error: {argv[1]!r} is no flag. Give the beginning of the text as --prompt.")
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        run_flags(sys.stdout)
    except KeyboardInterrupt:
        with contextlib.suppress(BrokenPipeError):
            print()
        sys.exit(130)
    except BrokenPipeError:  # as with | head
        show_no_more()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
