"""Text to tokens and back, piece by piece: prompts are checked, and text is decoded as it comes."""

import codecs
from collections.abc import Iterable

import numpy as np

from tbptt.streams.corpus import BOUNDARY, EOS, Vocabulary, split_words


def encode_prompt(vocabulary: Vocabulary, text: str) -> np.ndarray:
    """Encodes the beginning of a text, for a model to write on from.

    Args:
      vocabulary: of the model.
      text: the beginning; empty: the token that comes before a text, see `start_of_text`.

    Returns:
      `[N]` ids, N >= 1.

    Raises:
      ValueError: the vocabulary lacks some of the tokens, and has none for unknown ones; the
        message names them.
    """
    if vocabulary.kind == "bytes":  # of a command line, which may hold any bytes
        ids = vocabulary.encode(text.encode("utf-8", "surrogateescape"))
        return ids if len(ids) else np.array([start_of_text(vocabulary)])
    unknown = unknown_tokens(vocabulary, text)
    if unknown and vocabulary.unknown is None:
        thing = "word" if vocabulary.kind == "words" else "character"
        raise ValueError(
            f"The text has {', '.join(map(repr, unknown[:10]))}, which the model does not know: "
            f"its {len(vocabulary)} {thing}s are those of its training text. Leave them out."
        )
    ids = vocabulary.encode(text)
    return ids if len(ids) else np.array([start_of_text(vocabulary)])


def unknown_tokens(vocabulary: Vocabulary, text: str) -> list[str]:
    """Returns the characters or words of a text that the vocabulary lacks, each once, in order.

    Example:
      >>> unknown_tokens(Vocabulary("characters", ("a", "b")), "abba cad")
      [' ', 'c', 'd']
    """
    if vocabulary.kind == "bytes":
        return []
    known = set(vocabulary.tokens)
    tokens = split_words(text) if vocabulary.kind == "words" else text
    return [token for token in dict.fromkeys(tokens) if token not in known]


def start_of_text(vocabulary: Vocabulary) -> int:
    """Returns the id of a token that a text may begin after.

    It is the token between documents, if the vocabulary is of documents; the end of a line; or, if
    the model knows neither, the first token.
    """
    ends = {"words": (EOS,), "bytes": ("\n",), "characters": (BOUNDARY["characters"], "\n")}
    for token in ends[vocabulary.kind]:
        if token in vocabulary.tokens:
            return vocabulary.tokens.index(token)
    return 0


class TextDecoder:
    """Decodes tokens to text as they come; what it returns, joined, is the whole text.

    A character of several bytes is returned with its last byte, and bytes that are no UTF-8 as
    U+FFFD. Words are separated by blanks, and `<eos>` ends a line.

    Example:
      >>> decoder = TextDecoder(Vocabulary.of("", "bytes"))
      >>> [decoder([byte]) for byte in "a\u00e9".encode()]
      ['a', '', '\u00e9']
    """

    def __init__(self, vocabulary: Vocabulary, *, before: Iterable[int] = ()) -> None:
        """Creates a decoder.

        Args:
          vocabulary: of the tokens.
          before: tokens that come before the text, which are not returned.
        """
        self._vocabulary = vocabulary
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._after_word = False
        self(before)

    def __call__(self, ids: Iterable[int]) -> str:
        """Returns the text of the next tokens, as far as it is complete."""
        ids = [int(i) for i in ids]
        if self._vocabulary.kind == "bytes":
            return self._bytes.decode(bytes(ids))
        if self._vocabulary.kind == "characters":
            return "".join(self._vocabulary.tokens[i] for i in ids)
        parts = []
        for token in (self._vocabulary.tokens[i] for i in ids):
            blank = " " if self._after_word and token != EOS else ""
            parts.append("\n" if token == EOS else blank + token)
            self._after_word = token != EOS
        return "".join(parts)

    def end(self) -> str:
        """Returns U+FFFD if the text ends inside of a character, and otherwise nothing."""
        return self._bytes.decode(b"", final=True)
