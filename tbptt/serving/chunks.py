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
    """

    def __init__(self, inputs: Nest, lengths: np.ndarray) -> None:
        """Creates the steps of sessions that send so many each."""
        self.inputs, self.lengths = inputs, lengths
        self.begins = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return int(self.lengths.sum())


class ChunkJoiner:
    """Joins chunks of sessions, `[N, ...]` each, and refuses those that a model cannot take.

    All chunks must have the types and shapes, but for the steps, of the first that was ever joined.
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
            lengths = np.array([len(one[0]) for one in leaves])
            joined = [np.concatenate(parts) for parts in zip(*leaves, strict=True)]
        nest = _is_nest(each[0])
        steps = Steps(tf.nest.pack_sequence_as(each[0], joined) if nest else joined[0], lengths)
        for array in joined:
            self._check_values(array, list(chunks), steps)
        return steps

    def _alike(self, chunks: list[Nest]) -> bool:
        """Returns whether all are arrays of one kind that was joined before, none of them empty."""
        if self._kinds is None or len(self._kinds) != 1:
            return False
        shape = self._kinds[0][1]
        dtype = getattr(chunks[0], "dtype", None)
        return all(
            type(x) is np.ndarray and x.dtype == dtype and x.shape[1:] == shape and len(x) > 0
            for x in chunks
        )

    def _leaves(self, name: str, chunk: Nest) -> list[np.ndarray]:
        """Returns the arrays of a chunk, ids as int32 and features as float32."""
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
            if leaf.dtype.kind == "f":
                leaves[k] = leaf.astype(np.float32, copy=False)
            elif leaf.dtype != np.int32:
                leaves[k] = np.clip(leaf, -1, np.iinfo(np.int32).max).astype(np.int32)
        kinds = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
        if self._kinds is not None and kinds != self._kinds:
            raise ValueError(
                f"The inputs of session {name!r} are {_written(kinds)}, but were "
                f"{_written(self._kinds)} before. All chunks must have the same type and shape but "
                "for the steps."
            )
        self._kinds = kinds
        return leaves

    def _check_values(self, array: np.ndarray, names: list[str], steps: Steps) -> None:
        """Raises ValueError for the first value that the model cannot take."""
        if array.dtype.kind == "f":
            fine, rule = np.isfinite(array), "finite"
        else:
            size = np.iinfo(np.int32).max if self._size is None else self._size
            fine, rule = (array >= 0) & (array < size), f"ids from 0 to {size - 1}"
        if fine.all():
            return
        wrong = tuple(int(k) for k in np.argwhere(~fine)[0])
        place = int(np.searchsorted(steps.begins, wrong[0], side="right")) - 1
        raise ValueError(
            f"The inputs of session {names[place]!r} have the value {array[wrong]} at step "
            f"{wrong[0] - int(steps.begins[place])}, but must be {rule}."
        )


def _is_nest(inputs: Nest) -> bool:
    return isinstance(inputs, dict | tuple)


def _written(kinds: list[Kind]) -> str:
    return ", ".join(
        f"{dtype}[N{''.join(f', {size}' for size in shape)}]" for dtype, shape in kinds
    )
