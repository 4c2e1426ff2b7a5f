"""`ChunkJoiner`: checks the inputs that sessions send, and joins them for a `Streamer`."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tbptt.types import Nest

Kind = tuple[np.dtype, tuple[int, ...]]


class Steps:
    """Steps of several sessions, one session behind the other.

    Attributes:
      inputs: `[N, ...]`, or a nest of such.
      begins, lengths: `[n]`: where each session's steps begin, and how many they are.
      kinds: type and shape of a step of each leaf of the inputs.
    """

    def __init__(self, inputs: Nest, lengths: np.ndarray, kinds: list[Kind]) -> None:
        """Creates the steps of sessions that send so many each."""
        self.inputs, self.lengths, self.kinds = inputs, lengths, kinds
        self.begins = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return int(self.lengths.sum())


class ChunkJoiner:
    """Joins chunks of sessions, `[N, ...]` each, and refuses those that a model cannot take.

    All chunks must have the types and shapes, but for the steps, of those that `remember` was
    called with.
    """

    def __init__(self, vocabulary_size: int | None) -> None:
        """Creates a joiner for a model whose ids are below `vocabulary_size`; None: not known."""
        self._size = vocabulary_size
        self._kinds: list[Kind] | None = None

    def __call__(self, chunks: Mapping[str, Nest]) -> Steps:
        """Returns the steps of all chunks, by session.

        Raises:
          ValueError: a chunk is empty or of another kind, an id is not in the vocabulary, or a
            number is not finite; the message names the session.
        """
        each = list(chunks.values())
        if len(each) > 1 and self._alike(each):  # thousands of sessions that send a step each
            lengths = np.fromiter(map(len, each), np.int64, len(each))
            joined = self._leaves("", np.concatenate(each))
        else:
            leaves = [self._leaves(name, chunk) for name, chunk in chunks.items()]
            for name, arrays in zip(chunks, leaves, strict=True):
                self._check_kinds(name, _kinds(arrays), self._kinds or _kinds(leaves[0]))
            lengths = np.array([len(arrays[0]) for arrays in leaves])
            joined = [np.concatenate(parts) for parts in zip(*leaves, strict=True)]
        for array in joined:
            self._check_values(array, list(chunks), lengths)
        ready = [x if x.dtype.kind == "f" else x.astype(np.int32, copy=False) for x in joined]
        inputs = tf.nest.pack_sequence_as(each[0], ready) if _is_nest(each[0]) else ready[0]
        return Steps(inputs, lengths, _kinds(ready))

    def remember(self, steps: Steps) -> None:
        """Remembers the kind of steps that a model has taken; later ones must be of the same."""
        self._kinds = steps.kinds

    def _alike(self, chunks: list[Nest]) -> bool:
        """Returns whether all are arrays of one kind that was joined before, none of them empty."""
        if self._kinds is None or len(self._kinds) != 1:
            return False
        kind, shape = self._kinds[0]
        first = chunks[0]
        if type(first) is not np.ndarray or (first.dtype.kind == "f") != (kind.kind == "f"):
            return False
        return all(
            type(x) is np.ndarray
            and x.dtype == first.dtype
            and x.ndim == len(shape) + 1
            and x.shape[1:] == shape
            and len(x) > 0
            for x in chunks
        )

    def _leaves(self, name: str, chunk: Nest) -> list[np.ndarray]:
        """Returns the arrays of a chunk, features as float32."""
        leaves = [np.asarray(x) for x in (tf.nest.flatten(chunk) if _is_nest(chunk) else [chunk])]
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"The inputs of session {name!r} have shapes {[list(x.shape) for x in leaves]}, "
                "but must be [N, ...] with the same N of 1 or more."
            )
        for k, leaf in enumerate(leaves):
            if leaf.dtype.kind not in "iuf":
                raise ValueError(
                    f"The inputs of session {name!r} have type {leaf.dtype}; they must be numbers."
                )
            if leaf.dtype.kind == "f" and self._size is not None:
                raise ValueError(
                    f"The inputs of session {name!r} have type {leaf.dtype}, but must be ids, "
                    f"whole numbers from 0 to {self._size - 1}."
                )
            if leaf.dtype.kind == "f":
                leaves[k] = leaf.astype(np.float32, copy=False)
        return leaves

    def _check_kinds(self, name: str, kinds: list[Kind], expected: list[Kind]) -> None:
        if kinds != expected:
            raise ValueError(
                f"The inputs of session {name!r} are {_written(kinds)}, but those of others, or "
                f"before, {_written(expected)}. All chunks must have the same type and shape but "
                "for the steps."
            )

    def _check_values(self, array: np.ndarray, names: list[str], lengths: np.ndarray) -> None:
        """Raises ValueError for the first value that the model cannot take."""
        if array.dtype.kind == "f":
            fine, rule = np.isfinite(array), "finite"
        else:
            size = np.iinfo(np.int32).max if self._size is None else self._size
            fine, rule = (array >= 0) & (array < size), f"ids from 0 to {size - 1}"
        if fine.all():
            return
        wrong = tuple(int(k) for k in np.argwhere(~fine)[0])
        begins = np.cumsum(lengths) - lengths
        place = int(np.searchsorted(begins, wrong[0], side="right")) - 1
        raise ValueError(
            f"The inputs of session {names[place]!r} have the value {array[wrong]} at step "
            f"{wrong[0] - int(begins[place])}, but must be {rule}."
        )


def _kinds(leaves: list[np.ndarray]) -> list[Kind]:
    """Returns type and shape of a step of each leaf, where all whole numbers are of one type."""
    ids = np.dtype(np.int32)
    return [(ids if leaf.dtype.kind in "iu" else leaf.dtype, leaf.shape[1:]) for leaf in leaves]


def _is_nest(inputs: Nest) -> bool:
    return isinstance(inputs, dict | tuple)


def _written(kinds: list[Kind]) -> str:
    return ", ".join(
        f"{dtype}[N{''.join(f', {size}' for size in shape)}]" for dtype, shape in kinds
    )
