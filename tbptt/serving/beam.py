"""`beam_search`: the most probable continuations of a prompt, each a session of a `Streamer`."""

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from tbptt import checks
from tbptt.serving.streamer import Streamer


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A continuation that a beam search found.

    Attributes:
      tokens: the drawn tokens, a stop token at the end included.
      log_probability: of these tokens after the prompt, in nats.
      score: `log_probability / len(tokens) ** length_penalty`.
      ended: whether the last token is a stop token.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    ended: bool


@dataclasses.dataclass(frozen=True)
class _Live:
    """A hypothesis that goes on: its session has read its tokens."""

    session: str
    tokens: tuple[int, ...]
    log_probability: float
    next_log_p: np.ndarray  # [V]


def beam_search(
    streamer: Streamer,
    prompt: Any,
    length: int,
    *,
    width: int = 4,
    stop: Sequence[int] = (),
    length_penalty: float = 0.0,
    session: str | None = None,
) -> list[Hypothesis]:
    """Searches the most probable continuations of a prompt.

    Every step keeps the `width` most probable of all hypotheses that are one token longer. Those
    that end with a stop token leave the beam; the search is over when no other one can have a
    better score. A beam of one takes the most probable token at every step; a beam as wide as the
    number of all continuations finds the best.

    Each hypothesis is a session, forked from the one that it goes on from. They take up to `width`
    rows of the streamer, and are closed at the end, or when an error is raised.

    Args:
      streamer: of a model whose outputs are logits.
      prompt: `[N]` ids, N >= 1.
      length: the largest number of tokens of a continuation.
      width: the number of hypotheses that are kept.
      stop: ids that end a hypothesis.
      length_penalty: 0: the score is the log probability, which shorter hypotheses have an
        advantage in; 1: it is the mean over the tokens; more prefers longer ones.
      session: a session that the prompt goes on from, which stays as it is. None: a new one.

    Returns:
      At most `width` hypotheses, that of the best score first. Those that have not ended have
      `length` tokens.

    Raises:
      ValueError: an argument cannot be used.
      SessionError: there is no such session, or too few free rows.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> best, *others = beam_search(Streamer(model, jit_compile=False), [1, 2], 4, width=3)
      >>> len(best.tokens), len(others), best.score > others[0].score
      (4, 2, True)
    """
    checks.check_at_least("length", length, 1)
    checks.check_at_least("width", width, 1)
    checks.check_at_least("length_penalty", length_penalty, 0.0)
    opened = _Sessions(streamer)
    try:
        name = opened.new(session)
        live = [_Live(name, (), 0.0, _log_p(streamer.feed(name, prompt)))]
        size = len(live[0].next_log_p)
        for token in stop:
            if not 0 <= token < size:
                raise ValueError(f"stop has {token}, but must hold ids from 0 to {size - 1}.")
        done: list[Hypothesis] = []
        for n in range(1, length + 1):
            chosen = _best(live, width)
            for parent, token, log_p in chosen:
                if token in stop or n == length:
                    score = log_p / n**length_penalty
                    tokens = (*parent.tokens, token)
                    done.append(Hypothesis(tokens, log_p, score, token in stop))
            done = sorted(done, key=lambda one: -one.score)[:width]
            on = [one for one in chosen if one[1] not in stop] if n < length else []
            # A hypothesis only gets less probable, and its length is at most `length`.
            if not on or (
                len(done) == width and done[-1].score >= on[0][2] / length**length_penalty
            ):
                break
            live = _go_on(streamer, opened, live, on)
        return done
    finally:
        opened.close()


class _Sessions:
    """Opens sessions of names that nobody else has, and closes them all at the end."""

    def __init__(self, streamer: Streamer) -> None:
        self._streamer, self._names, self._prefix = streamer, set[str](), uuid.uuid4().hex
        self._count = 0

    def new(self, of: str | None) -> str:
        """Opens a session, a fork of another one if that is given; returns its name."""
        self._count += 1
        name = f"beam {self._prefix} {self._count}"
        if of is None:
            self._streamer.open(name)
        else:
            self._streamer.fork(of, name)
        self._names.add(name)
        return name

    def close(self, *names: str) -> None:
        """Closes these sessions; without names, all."""
        for name in names or tuple(self._names):
            self._names.discard(name)
            self._streamer.close(name)


def _log_p(logits: np.ndarray) -> np.ndarray:
    """Returns log probabilities `[V]` of the token after the last step of `logits [N, V]`."""
    last = np.asarray(logits[-1], np.float64)
    shifted = last - last.max()
    return shifted - np.log(np.exp(shifted).sum())


def _best(live: list[_Live], width: int) -> list[tuple[_Live, int, float]]:
    """Returns the `width` most probable pairs of a hypothesis and its next token, best first."""
    totals = np.concatenate([one.log_probability + one.next_log_p for one in live])
    size = len(live[0].next_log_p)
    order = np.argsort(-totals, kind="stable")[:width]
    return [(live[k // size], int(k % size), float(totals[k])) for k in order]


def _go_on(
    streamer: Streamer, opened: _Sessions, live: list[_Live], on: list[tuple[_Live, int, float]]
) -> list[_Live]:
    """Reads the chosen tokens: one child has the session of its parent, the others are forks."""
    needed = {parent.session for parent, _, _ in on}
    if dead := [one.session for one in live if one.session not in needed]:
        opened.close(*dead)
    names, taken = [], set[str]()
    for parent, _, _ in on:
        names.append(opened.new(parent.session) if parent.session in taken else parent.session)
        taken.add(parent.session)
    tokens = {name: np.array([token]) for name, (_, token, _) in zip(names, on, strict=True)}
    outputs = streamer.feed_many(tokens)
    return [
        _Live(name, (*parent.tokens, token), log_p, _log_p(outputs[name]))
        for name, (parent, token, log_p) in zip(names, on, strict=True)
    ]
