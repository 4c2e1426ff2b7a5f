"""What `experiments.language_model` reads: vocabulary, parts, streams of windows."""

import itertools
from typing import Any

import numpy as np

import tbptt
from experiments.language_settings import Settings
from tbptt.streams import corpus

Part = np.ndarray | tbptt.Pieces  # one text, or documents


def load(settings: Settings) -> tuple[corpus.Vocabulary, list[Part]]:
    """The vocabulary, and the ids of training, validation and test part."""
    files = [settings.train_text, settings.valid_text, settings.test_text]
    size = settings.vocabulary_size or None
    if settings.prepared:
        return load_prepared(settings)
    if settings.documents:
        return load_documents(settings, size)
    if any(files):
        if not all(files):
            raise ValueError("--train_text, --valid_text and --test_text go together.")
        texts = [corpus.read_text(path) for path in files]
        vocabulary = corpus.Vocabulary.of(texts[0], settings.tokens, size)
        return vocabulary, [vocabulary.encode(text) for text in texts]
    if not settings.corpus:
        raise ValueError(
            f"--config={settings.config} needs --train_text, --valid_text and --test_text, "
            "plain files of one sentence a line; or --corpus."
        )
    known = {"python-docs": corpus.python_docs, "python-source": corpus.python_source}
    make = known.get(settings.corpus, lambda: corpus.read_text(settings.corpus))
    text = make()
    vocabulary = corpus.Vocabulary.of(text, settings.tokens, size)
    ids = vocabulary.encode(text)
    return vocabulary, list(corpus.split(ids, settings.valid_fraction, settings.test_fraction))


def load_prepared(settings: Settings) -> tuple[corpus.Vocabulary, list[Part]]:
    """The same of a prepared corpus, memory-mapped; one of a single document is a text."""
    vocabulary, tokens, ends = corpus.open_corpus(settings.prepared)
    if vocabulary is None:
        raise ValueError(
            f"{settings.prepared!r} has no vocabulary to show tokens with: a tokenizer of yours "
            "made them. Train on it from a script of your own."
        )
    if len(ends) == 1:
        return vocabulary, list(
            corpus.split(tokens, settings.valid_fraction, settings.test_fraction)
        )
    return vocabulary, split_documents(settings, tbptt.Pieces(tokens, ends))


def split_documents(settings: Settings, documents: tbptt.Pieces) -> list[Part]:
    """Training, validation and test part: the last documents are the test."""
    count = len(documents)
    test = settings.test_documents or max(1, round(settings.test_fraction * count))
    valid = settings.valid_documents or max(1, round(settings.valid_fraction * count))
    train = count - valid - test
    if train < 1:
        raise ValueError(
            f"Of {count} documents {valid} are for validation and {test} for the test, which "
            "leaves none to train on. Use smaller --valid_documents and --test_documents."
        )
    ends = (0, train, train + valid, count)
    return [documents.part(a, b) for a, b in itertools.pairwise(ends)]


def load_documents(settings: Settings, size: int | None) -> tuple[corpus.Vocabulary, list[Part]]:
    """The vocabulary of documents, and their parts."""
    found = list(tbptt.read_documents(settings.documents))
    text = "\n".join(content for _, content in found if isinstance(content, str))
    if not text:
        raise ValueError(
            f"{settings.documents!r} holds tokens, not texts, and there is no vocabulary to show "
            "them with. Use documents with a text."
        )
    vocabulary = corpus.Vocabulary.of(text, settings.tokens, size, boundary=True)
    return vocabulary, split_documents(settings, tbptt.encode_documents(found, vocabulary))


def open_stream(
    settings: Settings, vocabulary: corpus.Vocabulary, part: Part, rows: int, *, training: bool
) -> tbptt.ContiguousStream | tbptt.DocumentStream:
    """Windows of a part: cut and shuffled as the settings say to train, else as they are."""
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
    if isinstance(part, tbptt.Pieces):
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
