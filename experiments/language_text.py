"""Loads the data of `experiments.language_model`: vocabulary, parts, streams of windows."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

import tbptt
from experiments.language_settings import Settings
from tbptt.streams import corpus, files, prepared

Part = np.ndarray | tbptt.Segments  # one text, or documents
NAMES = ("training", "validation", "test")
KNOWN = {"python-docs": corpus.python_docs, "python-source": corpus.python_source}


@dataclasses.dataclass(frozen=True)
class Data:
    """The data that a language model is trained, validated and tested on.

    Attributes:
      vocabulary: the vocabulary of the training part.
      parts: ids of training, validation and test part: three texts, or three sets of documents.
      by_frequency: whether ids are sorted by frequency, as some readouts expect.
    """

    vocabulary: corpus.Vocabulary
    parts: list[Part]
    by_frequency: bool


def load(settings: Settings) -> Data:
    """Loads the data that the settings name: a corpus, three files, documents, a prepared corpus.

    Raises:
      ValueError: it cannot be read or split as the settings say.
    """
    if settings.prepared:
        return load_prepared(settings)
    if settings.documents:
        return load_documents(settings)
    if settings.train_text:
        return load_files(settings)
    if not settings.corpus:
        raise ValueError(
            f"--config={settings.config} needs --train_text, --valid_text and --test_text, "
            "plain files of one sentence a line; or --corpus."
        )
    return load_corpus(settings)


def load_corpus(settings: Settings) -> Data:
    """Loads and splits one text; tokens that the training part lacks are read as unknown."""
    kind, fractions = settings.tokens, (settings.valid_fraction, settings.test_fraction)
    if kind == "bytes":
        vocabulary = corpus.Vocabulary.of("", kind)
        known = KNOWN.get(settings.corpus)
        ids = vocabulary.encode(known() if known else files.read_bytes(settings.corpus))
        return _split(settings, vocabulary, ids, by_frequency=False)
    text = KNOWN.get(settings.corpus, lambda: files.read_text(settings.corpus))()
    texts = corpus.split_text(text, kind, *fractions)
    vocabulary = corpus.Vocabulary.of(texts[0], kind, settings.vocabulary_size or None)
    vocabulary = with_unknown(vocabulary, texts[1:])
    parts: list[Part] = [vocabulary.encode(part) for part in texts]
    check_sizes(settings, parts)
    return Data(vocabulary, parts, by_frequency=kind == "words")


def load_files(settings: Settings) -> Data:
    """Loads a text for each part; raises ValueError for a token that the training part lacks."""
    paths = (settings.train_text, settings.valid_text, settings.test_text)
    kind = settings.tokens
    if kind == "bytes":
        vocabulary = corpus.Vocabulary.of("", kind)
        found: list[Part] = [vocabulary.encode(files.read_bytes(path)) for path in paths]
        return Data(vocabulary, _long_enough(settings, paths, found), by_frequency=False)
    texts = [files.read_text(path) for path in paths]
    vocabulary = corpus.Vocabulary.of(texts[0], kind, settings.vocabulary_size or None)
    parts: list[Part] = []
    for path, text in zip(paths, texts, strict=True):
        try:
            parts.append(vocabulary.encode(text))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return Data(vocabulary, _long_enough(settings, paths, parts), by_frequency=kind == "words")


def load_prepared(settings: Settings) -> Data:
    """Loads a prepared corpus, memory-mapped; a single document counts as one text."""
    found = prepared.open_corpus(settings.prepared)
    if found.vocabulary is None:
        raise ValueError(
            f"{settings.prepared!r} has no vocabulary to show tokens with: a tokenizer of yours "
            "made them. Train on it from a script of your own."
        )
    kind = found.vocabulary.kind
    if settings.tokens not in (kind, Settings.tokens):
        raise ValueError(
            f"--tokens={settings.tokens} is not what {settings.prepared!r} is of, which is {kind}. "
            "Leave --tokens out: a prepared corpus says what it is of."
        )
    if len(found.ends) == 1:
        if settings.valid_documents or settings.test_documents:
            raise ValueError(
                f"{settings.prepared!r} is one document, which --valid_fraction and "
                "--test_fraction split. Leave out --valid_documents and --test_documents."
            )
        return _split(settings, found.vocabulary, found.tokens, found.by_frequency)
    if settings.shuffle != "none":
        raise ValueError(
            f"--shuffle has no effect with {settings.prepared!r}, whose documents are in another "
            "order in every epoch anyway. Leave it out."
        )
    ends = split_documents(settings, len(found.ends))
    documents = tbptt.Segments(found.tokens, found.ends)
    parts: list[Part] = [documents.part(a, b) for a, b in itertools.pairwise(ends)]
    return Data(found.vocabulary, parts, found.by_frequency)


def load_documents(settings: Settings) -> Data:
    """Loads documents and splits them in three parts; the vocabulary is of the training part."""
    kind = settings.tokens
    found = list(tbptt.read_documents(settings.documents, binary=kind == "bytes"))
    for name, content in found:
        if isinstance(content, np.ndarray):
            raise ValueError(
                f"{name} holds tokens, not a text, and there is no vocabulary to show them with. "
                "Use documents with a text, all of them."
            )
    ends = split_documents(settings, len(found))
    lots = [found[a:b] for a, b in itertools.pairwise(ends)]
    if kind == "bytes":
        vocabulary = corpus.Vocabulary.of("", kind)
    else:
        texts = ["\n".join(str(content) for _, content in lot) for lot in lots]
        size = settings.vocabulary_size or None
        vocabulary = corpus.Vocabulary.of(texts[0], kind, size, boundary=True)
        vocabulary = with_unknown(vocabulary, texts[1:])
    parts: list[Part] = [tbptt.encode_documents(lot, vocabulary) for lot in lots]
    return Data(vocabulary, parts, by_frequency=kind == "words")


def with_unknown(vocabulary: corpus.Vocabulary, texts: list[str]) -> corpus.Vocabulary:
    """Adds a token for unknown ones to the vocabulary if these texts have any, and logs how many.

    If all tokens are known, the vocabulary stays the same.
    """
    more = vocabulary.with_unknown()
    if more is vocabulary:
        return vocabulary
    counts = [int((more.encode(text) == more.unknown).sum()) for text in texts]
    for name, count in zip(NAMES[1:], counts, strict=True):
        if count:
            logging.info(
                "%s tokens of the %s part do not occur in the training part; they are read as %r.",
                f"{count:,}",
                name,
                more.tokens[-1],
            )
    return more if any(counts) else vocabulary


def _split(
    settings: Settings, vocabulary: corpus.Vocabulary, ids: np.ndarray, by_frequency: bool
) -> Data:
    parts: list[Part] = list(corpus.split(ids, settings.valid_fraction, settings.test_fraction))
    check_sizes(settings, parts)
    return Data(vocabulary, parts, by_frequency)


def _long_enough(settings: Settings, paths: Sequence[str], parts: list[Part]) -> list[Part]:
    """Returns the parts; raises ValueError unless each has more tokens than rows."""
    rows_of = (settings.rows, settings.valid_rows, 1)
    for path, part, rows in zip(paths, parts, rows_of, strict=True):
        if len(part) <= rows:
            raise ValueError(
                f"{path!r} has {len(part)} tokens, but is read in {rows} rows, which takes "
                f"{rows + 1}. Give a longer text, or use fewer rows."
            )
    return parts


def check_sizes(settings: Settings, parts: list[Part]) -> None:
    """Raises ValueError unless validation and test part of a split text have enough tokens."""
    total = sum(len(part) for part in parts)
    fractions = (settings.valid_fraction, settings.test_fraction)
    for name, fraction, part, rows in zip(
        ("valid", "test"), fractions, parts[1:], (settings.valid_rows, 1), strict=True
    ):
        if len(part) <= rows:
            advice = f" Use a larger --{name}_fraction, or a longer corpus."
            raise ValueError(
                f"--{name}_fraction ({fraction}) of {total:,} tokens is {len(part)}, but this part "
                f"is read in {rows} rows, which takes {rows + 1}.{advice}"
            )


def split_documents(settings: Settings, count: int) -> tuple[int, int, int, int]:
    """Returns the documents at which training, validation and test part begin and end, in order.

    Raises:
      ValueError: no documents are left to train on.
    """
    test = settings.test_documents or max(1, round(settings.test_fraction * count))
    valid = settings.valid_documents or max(1, round(settings.valid_fraction * count))
    train = count - valid - test
    if count < 3:
        raise ValueError(
            f"Documents found: {count}. Training, validation and test need one each. Add "
            "documents, or train on one text, with --corpus."
        )
    if train < 1:
        raise ValueError(
            f"Of {count} documents {valid} are for validation and {test} for the test, which "
            "leaves none to train on. Use smaller --valid_documents and --test_documents, or "
            "smaller fractions."
        )
    return 0, train, train + valid, count


def open_stream(
    settings: Settings, vocabulary: corpus.Vocabulary, part: Part, rows: int, *, training: bool
) -> tbptt.ContiguousStream | tbptt.DocumentStream:
    """Opens a stream on a part: with the settings' truncation and shuffling only for training."""
    truncation = tbptt.Truncation(settings.window_length)
    if training:
        truncation = tbptt.Truncation(
            settings.window_length,
            stride=settings.stride or None,
            burn_in=settings.burn_in,
            jitter=settings.jitter,
            cut=settings.cut,
            drop_state=settings.drop_state,
        )
    shared: dict[str, Any] = dict(
        vocabulary_size=len(vocabulary), truncation=truncation, seed=settings.seed
    )
    if isinstance(part, tbptt.Segments):
        return tbptt.DocumentStream(
            part,
            rows=rows if training else min(rows, len(part)),
            boundary=vocabulary.boundary,
            shuffle=training,
            whole=not training,
            **shared,
        )
    return tbptt.ContiguousStream(
        part,
        rows=rows,
        tail="drop" if training else "pad",
        shuffle=settings.shuffle if training else "none",
        **shared,
    )
