"""`DocumentStream`: documents of tokens; a row is reset at each, also inside a window."""

from collections.abc import Iterable

import numpy as np

from tbptt import checks
from tbptt.streams.contiguous import check_ids, fresh
from tbptt.streams.corpus import Vocabulary
from tbptt.streams.files import Document
from tbptt.streams.segments import Segments, SegmentStream
from tbptt.streams.truncation import Truncation, truncation_of


class DocumentStream(SegmentStream):
    """Reads documents on B rows, one after another, with a reset at the start of each.

    See `SegmentStream` for the distribution over rows. With a `boundary` token, the targets of a
    document of n tokens are all its tokens, and its end:

        inputs   boundary  d_0  ...  d_{n-1}
        targets  d_0       d_1  ...  boundary

    Without one, the targets are its last n - 1 tokens.

    Example:
      >>> documents = Segments.of([np.array([1, 2, 3]), np.array([4, 5])])
      >>> stream = DocumentStream(documents, rows=1, window_length=7, vocabulary_size=6,
      ...                         boundary=0, shuffle=False)
      >>> window, _ = stream.windows(Cursor(), 1)
      >>> window.inputs[0, :, 0].tolist(), window.targets[0, :, 0].tolist()
      ([0, 1, 2, 3, 0, 4, 5], [1, 2, 3, 0, 4, 5, 0])
      >>> window.controls.reset[0, :, 0].astype(int).tolist()
      [1, 0, 0, 0, 1, 0, 0]
    """

    def __init__(
        self,
        documents: Segments,
        *,
        rows: int,
        vocabulary_size: int,
        window_length: int | None = None,
        truncation: Truncation | None = None,
        boundary: int | None = None,
        shuffle: bool = True,
        whole: bool = False,
        seed: int = 0,
    ) -> None:
        """Creates a stream on documents of tokens.

        Args:
          documents: the tokens `[N]` of all documents; memory maps stay on disk.
          rows: B.
          vocabulary_size: every token must be below it.
          window_length: T, of windows one after another.
          truncation: other windows; instead of `window_length`.
          boundary: a token that is read before each document and predicted after it.
          shuffle: whether the order changes from epoch to epoch.
          whole: whether to keep each document on one row, see `SegmentStream`: for evaluation, with
            `shuffle=False`.
          seed: the seed of all randomness.

        Raises:
          ValueError: a document has one token and there is no `boundary`; or there are more rows
            than can be filled.
        """
        tokens = documents.values
        checks.check_shape("the documents' tokens", tokens, [None])
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"The documents' tokens are {tokens.dtype}, but must be integers.")
        if boundary is not None:
            checks.check_between("boundary", boundary, 0, vocabulary_size)
        lengths = documents.lengths
        if boundary is None and lengths.min() < 2:
            raise ValueError(
                f"Document {lengths.argmin()} has one token, after which nothing follows that "
                "could be predicted. Leave it out, or use a boundary token."
            )
        self.documents = documents
        self.vocabulary_size = vocabulary_size
        self._boundary = boundary
        super().__init__(
            lengths + (1 if boundary is not None else -1),
            rows=rows,
            truncation=truncation_of(window_length, truncation),
            shuffle=shuffle,
            whole=whole,
            seed=seed,
        )

    def take(
        self, segment: np.ndarray, step: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Reads tokens, see `SegmentStream`; raises DataError if one is out of range."""
        tokens = fresh(self.documents.values)
        at = self.documents.begins[segment] + step
        last = len(tokens) - 1
        if self._boundary is None:
            places, edges = (at, at + 1), (None, None)
        else:
            places = (np.maximum(at - 1, 0), np.minimum(at, last))
            edges = (step == 0, step == self.documents.lengths[segment])
        ids = []
        for place, edge in zip(places, edges, strict=True):
            found = tokens[place]
            check_ids(found, place, self.vocabulary_size)
            found = found.astype(np.int32)
            ids.append(found if edge is None else np.where(edge, np.int32(self._boundary), found))
        return ids[0], ids[1], None


def encode_documents(
    documents: Iterable[tuple[str, Document]], vocabulary: Vocabulary | None = None
) -> Segments:
    """Encodes documents, as `read_documents` yields them, as tokens.

    Args:
      documents: pairs of name and content.
      vocabulary: encodes texts; documents of tokens stay as they are.

    Raises:
      ValueError: a text has no vocabulary, or a token that is not in it; the message says where.
    """
    arrays = []
    for name, content in documents:
        if not isinstance(content, np.ndarray):
            if vocabulary is None:
                raise ValueError(f"{name} is a text, and there is no vocabulary to encode it.")
            try:
                content = vocabulary.encode(content)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if len(content) == 0:
            raise ValueError(f"{name} is an empty document. Leave it out.")
        arrays.append(content)
    return Segments.of(arrays)
