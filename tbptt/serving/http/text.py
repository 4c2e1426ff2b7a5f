"""`Text`: encodes prompts and decodes drawn tokens one by one, by a model's vocabulary."""

import codecs
from collections.abc import Callable
from typing import Any

import numpy as np

END_OF_LINE = "<eos>"  # the token of words that stands for the end of a line


class Text:
    """Converts between text and ids of a `Vocabulary`.

    Example:
      >>> text = Text(Vocabulary("words", ("the", "cat", "<eos>")))
      >>> text.encode("the cat").tolist()
      [0, 1]
      >>> decode = text.decoder(after=0)
      >>> [decode(token) for token in (1, 2, 0)]
      [' cat', '\\n', 'the']
    """

    def __init__(self, vocabulary: Any) -> None:
        """Creates it for a `Vocabulary`, or an object that has its kind, tokens and `encode`."""
        self.vocabulary = vocabulary

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, `[N]`.

        Raises:
          ValueError: the text is empty, or has a token that the vocabulary does not have.
        """
        ids = self.vocabulary.encode(text)
        if not len(ids):
            raise ValueError(f"The text ({text!r}) has no {self.vocabulary.kind}.")
        return np.asarray(ids, np.int32)

    def decoder(self, after: int | None) -> Callable[[int], str]:
        """Returns a function of the next token to its text, which begins after token `after`.

        Bytes that are not a whole character yet are held back until it is.
        """
        tokens = self.vocabulary.tokens
        if self.vocabulary.kind == "bytes":
            utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
            return lambda token: utf8.decode(bytes([token]))
        if self.vocabulary.kind != "words":
            return lambda token: tokens[token]
        glued = after is None or tokens[after] == END_OF_LINE

        def word(token: int) -> str:
            nonlocal glued
            ends = tokens[token] == END_OF_LINE
            written = "\n" if ends else tokens[token] if glued else " " + tokens[token]
            glued = ends
            return written

        return word

    def token(self, text: str) -> int:
        """Returns the id of a text that is one token.

        Raises:
          ValueError: it is several tokens, or none.
        """
        ids = self.encode(text)
        if len(ids) != 1:
            raise ValueError(f"The text {text!r} is {len(ids)} tokens, but must be one.")
        return int(ids[0])
