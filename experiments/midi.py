"""Lets a model of `experiments.music` go on with a piece, and reads and writes MIDI files.

A frame is a quarter note, and key k is MIDI note 21 + k, so 88 keys are those of a piano. A key
that sounds in several frames in a row is one note.
"""

import os
from typing import Any

import numpy as np

from tbptt import checks
from tbptt.serving.streamer import Streamer
from tbptt.streams.files import DataError, regular_file
from tbptt.types import Model

LOWEST = 21  # the MIDI note of key 0, the lowest of a piano
DRUMS = 9  # the channel whose notes are no pitches
TICKS = 480  # of a quarter note
MOST = 100_000  # frames of a file that is read
TEMPO = 600_000  # microseconds of a quarter note: 100 a minute


def continue_piece(
    model: Model, piece: np.ndarray, length: int, *, seed: int = 0, temperature: float = 1.0
) -> np.ndarray:
    """Draws frames that follow a piece, each frame being the next input.

        p(key k sounds) = sigmoid(logits_k / temperature), independently of the other keys

    as `binary_cross_entropy` has it.

    Args:
      model: reads frames `[T, B, keys]`; its outputs are the logits of the next ones.
      piece: `[N, keys]`, 0 or 1, N >= 1.
      length: the number of frames to draw.
      seed: >= 0; the same seed draws the same frames.
      temperature: > 0; below 1 less random.

    Returns:
      Frames `[length, keys]`, bool.
    """
    checks.check_at_least("length", length, 1)
    if not temperature > 0:
        raise ValueError(f"temperature ({temperature}) must be above 0; 0.01 takes what is likely.")
    streamer = Streamer(model, capacity=1, batch_sizes=[1], jit_compile=False)
    streamer.open("piece")
    logits = streamer.feed("piece", np.asarray(piece, np.float32))[-1]
    rng, frames = np.random.default_rng(seed), []
    while True:
        p = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64) / temperature, -700, 700)))
        frames.append(rng.random(len(p)) < p)
        if len(frames) == length:
            return np.stack(frames)
        logits = streamer.feed("piece", frames[-1][None].astype(np.float32))[0]


def write_midi(path: str | os.PathLike[str], frames: np.ndarray) -> None:
    """Writes frames `[N, keys]` of 0 and 1 as a MIDI file of one track, for a piano.

    Raises:
      ValueError: mido is not installed, or there are more keys than MIDI has.
      OSError: the file cannot be written.
    """
    mido = _mido()
    frames = np.asarray(frames) > 0.5
    highest = 127 - LOWEST
    if frames[:, highest + 1 :].any():
        raise ValueError(f"A key above number {highest} sounds, which MIDI has no note for.")
    edges = np.diff(frames.astype(np.int8), axis=0, prepend=0, append=0)  # [N + 1, keys]
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=TEMPO)])
    now = 0
    for begin, changes in enumerate(edges):
        for edge, kind in ((-1, "note_off"), (1, "note_on")):
            for key in np.flatnonzero(changes == edge):
                tick = begin * TICKS
                note = dict(note=LOWEST + int(key), velocity=64, time=tick - now)
                track.append(mido.Message(kind, **note))
                now = tick
    track.append(mido.MetaMessage("end_of_track", time=len(frames) * TICKS - now))
    mido.MidiFile(tracks=[track], ticks_per_beat=TICKS).save(os.fspath(path))


def read_midi(path: str | os.PathLike[str], keys: int) -> np.ndarray:
    """Reads the frames of a MIDI file, `[N, keys]` bool: all tracks but drums, a frame a quarter.

    A note sounds in the frames from the one nearest to its beginning to that nearest to its end,
    and in one at least.

    Raises:
      ValueError: mido is not installed, or it is no MIDI file, or has no notes that the keys have.
    """
    mido = _mido()
    regular_file(os.fspath(path), "a MIDI file")
    try:
        file = mido.MidiFile(os.fspath(path))
        messages, unit = list(mido.merge_tracks(file.tracks)), file.ticks_per_beat
    except Exception as error:  # mido raises whatever it meets in a damaged file
        raise DataError(f"{str(path)!r} cannot be read as a MIDI file ({error!r}).") from None
    notes, now, sounding = [], 0, dict[tuple[int, int], int]()
    for message in messages:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == DRUMS:
            continue
        place = (message.channel, message.note)
        if place in sounding:  # a key that is struck again ends the note before
            notes.append((message.note, sounding.pop(place), now))
        if message.type == "note_on" and message.velocity > 0:
            sounding[place] = now
    notes += [(note, begin, now) for (_, note), begin in sounding.items()]
    if not notes:
        raise DataError(f"{str(path)!r} has no notes.")
    if now / unit > MOST:
        raise DataError(f"{str(path)!r} is {now / unit:,.0f} quarters long; {MOST:,} can be read.")
    frames = np.zeros([max(1, round(now / unit)), keys], bool)
    for note, begin, end in notes:
        if not LOWEST <= note < LOWEST + keys:
            raise DataError(
                f"{str(path)!r} has note {note}, but the model's {keys} keys are notes {LOWEST} to "
                f"{LOWEST + keys - 1}."
            )
        first = min(round(begin / unit), len(frames) - 1)
        frames[first : max(first + 1, round(end / unit)), note - LOWEST] = True
    return frames


def _mido() -> Any:
    try:
        import mido
    except ImportError:
        raise ValueError("A MIDI file needs mido: pip install -e '.[midi]'") from None
    return mido
