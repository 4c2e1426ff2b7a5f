"""A recurrent language model, trained by truncated back-propagation on one long text.

    python -m experiments.language_model
    python -m experiments.language_model --corpus=PATH --hidden=512 --logdir=runs/mine
    python -m experiments.language_model --documents=speeches.jsonl --test_documents=9
    python -m experiments.language_model --config=ptb_small \\
        --train_text=ptb.train.txt --valid_text=ptb.valid.txt --test_text=ptb.test.txt

The first learns Python's own documentation, character by character, in a few minutes on
two cores; README.md says what it reaches. The presets ptb_* are Zaremba, Sutskever &
Vinyals (2014), as the TensorFlow PTB tutorial has them; to expect on the Penn Treebank,
test perplexity: small 115.9, medium 82.1, large 78.3.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

import tbptt
from experiments import common, run
from experiments.run import setting
from tbptt import checks, optimizers, summaries
from tbptt.layers import initializers
from tbptt.serving.generate import check_sampling
from tbptt.streams import corpus
from tbptt.training.average import NonMonotonic
from tbptt.types import Readout, Seed

# Zaremba et al.: the loss is summed over the window, and rate and clipping norm go with
# that; there is no forget bias; the rate falls once an epoch after some constant ones.
PTB: dict[str, Any] = dict(
    corpus="", tokens="words", vocabulary_size=10_000, rows=20, window_length=20, valid_rows=20,
    embedding=200, hidden=200, layers=2, dropout=0.0, init_scale=0.1, forget_bias=0.0,
    optimizer="sgd", learning_rate=1.0, schedule="epoch_decay", decay=0.5, constant_epochs=4,
    weight_decay=0.0, clip_norm=5.0, reduction="sum_over_window", max_epochs=13,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "char": {},
    "ptb_small": PTB,
    "ptb_medium": PTB | dict(
        window_length=35, embedding=650, hidden=650, dropout=0.5, init_scale=0.05, decay=0.8,
        constant_epochs=6, max_epochs=39,
    ),
    # Merity, Keskar & Socher (2018): AWD-LSTM, test perplexity 58.8 without fine-tuning.
    "awd_ptb": PTB | dict(
        window_length=80, jitter=5.0, embedding=400, hidden=1150, top_hidden=400, layers=3,
        tied=True, dropout=0.4, dropout_per="window", core_dropout=0.25, embedding_dropout=0.1,
        weight_dropout=0.5, activation_penalty=2.0, slowness_penalty=1.0, optimizer="sgd_decay",
        weight_decay=1.2e-6, learning_rate=30.0, schedule="constant", clip_norm=0.25,
        reduction="mean", average_patience=5, max_epochs=500,
    ),
    "ptb_large": PTB | dict(
        window_length=35, embedding=1500, hidden=1500, dropout=0.65, init_scale=0.04,
        decay=1 / 1.15, constant_epochs=14, max_epochs=55, clip_norm=10.0,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes. The defaults are the preset `char`."""

    config: str
    corpus: str = setting("python-docs", "python-docs, python-source, or a UTF-8 file to split.")
    train_text: str = setting("", "UTF-8 file to train on, instead of --corpus.")
    valid_text: str = setting("", "UTF-8 file to validate on, with --train_text.")
    test_text: str = setting("", "UTF-8 file to test on, with --train_text.")
    documents: str = setting(
        "", "Documents instead: .jsonl, a folder, or a file of one a line; each starts anew."
    )
    prepared: str = setting("", "Folder of tools.prepare instead, split by documents or tokens.")
    valid_documents: int = setting(0, "Documents before the test's; 0: a fraction.", least=0)
    test_documents: int = setting(0, "Last documents: the test; 0: a fraction.", least=0)
    valid_fraction: float = setting(0.04, "Part of --corpus before the test part: validation.")
    test_fraction: float = setting(0.1, "Part of --corpus at its end: test.")
    tokens: str = setting("characters", "characters, bytes or words.")
    vocabulary_size: int = setting(
        0, "Most frequent words to keep, <unk> among them; 0: all.", least=0
    )
    rows: int = setting(32, "B: rows, streams read side by side.", least=1)
    window_length: int = setting(
        64, "T: steps in a window; the gradient goes no further back.", least=1
    )
    shuffle: str = setting("none", "Of --corpus, an epoch: none, offset or rotate.")
    stride: int = setting(0, "Steps that a window advances; 0: its length.", least=0)
    burn_in: int = setting(0, "First steps that only refresh the state.", least=0)
    jitter: float = setting(0.0, "Standard deviation of a window's length.", least=0)
    cut: float = setting(0.0, "Probability of a cut before a step; the rest counts more.")
    drop_state: float = setting(0.0, "Probability that a row forgets before a window.")
    valid_rows: int = setting(16, "Rows of the validation; the test is read in one.", least=1)
    cell: str = setting("lstm", "lstm or gru.")
    embedding: int = setting(64, "Size of the embedding.", least=1)
    hidden: int = setting(256, "Units in a layer.", least=1)
    layers: int = setting(1, "Layers.", least=1)
    top_hidden: int = setting(0, "Units in the top layer; 0: as in the others.", least=0)
    core_dropout: float = setting(-1.0, "Rate between the layers; -1: as --dropout.")
    tied: bool = setting(False, "Readout and embedding share one table.")
    readout: str = setting("full", "full, chunked, adaptive or sampled: for many words.")
    readout_chunk: int = setting(2048, "Ids scored at a time, unless --readout=full.", least=1)
    cutoffs: str = setting(
        "", "Ids that tails begin with, with --readout=adaptive; else a tenth and a half."
    )
    samples: int = setting(1000, "Ids drawn a window, with --readout=sampled.", least=1)
    learn_initial_state: bool = setting(False, "Rows start from a learned state, not zeros.")
    dropout: float = setting(0.25, "Rate, below, between and above the layers.")
    dropout_per: str = setting("step", "A mask a step or a mask a window.")
    recurrent_dropout: float = setting(0.0, "Rate, from step to step, one mask a window.")
    weight_dropout: float = setting(0.0, "Rate, of the recurrent weights, one mask a window.")
    zoneout: float = setting(0.0, "Rate at which an LSTM's units keep their old value.")
    layer_norm: bool = setting(False, "Layer normalisation, with --cell=lstm.")
    embedding_dropout: float = setting(0.0, "Rate at which ids are dropped from a window.")
    activation_penalty: float = setting(0.0, "AR: times the mean square of the outputs.", least=0)
    slowness_penalty: float = setting(0.0, "TAR: of their change from step to step.", least=0)
    init_scale: float = setting(
        0.0, "Weights start uniform in +-this; 0: Glorot, orthogonal.", least=0
    )
    forget_bias: float = setting(1.0, "First value of the LSTM's forget bias.")
    backend: str = setting("auto", "Unrolls windows: auto, fused, scan, reference or cudnn.")
    keep: str = setting("gates", "gates, or states: less memory, computed again for the gradient.")
    precision: str = setting("float32", "float32 or bfloat16: what products are computed in.")
    optimizer: str = setting("adamw", "sgd, sgd_decay, momentum, rmsprop, adam or adamw.")
    learning_rate: float = setting(5e-3, "Learning rate, the peak of its schedule.", least=0)
    schedule: str = setting("cosine", "constant, cosine (to 0 at the end) or epoch_decay.")
    warmup: int = setting(100, "Windows of linear warm-up, with --schedule=cosine.", least=0)
    decay: float = setting(0.5, "Factor an epoch, with --schedule=epoch_decay.", least=0)
    constant_epochs: int = setting(4, "Epochs before it, with --schedule=epoch_decay.", least=0)
    weight_decay: float = setting(
        0.01, "Weight decay, with --optimizer=adamw or sgd_decay.", least=0
    )
    clip_norm: float = setting(1.0, "Largest norm of the gradient; 0: no clipping.", least=0)
    reduction: str = setting("mean", "Loss: mean, or sum_over_window averaged over rows.")
    average_patience: int = setting(
        0, "NT-ASGD: average parameters once no better for so many validations; 0: never.", least=0
    )
    max_epochs: int = setting(18, "Epochs to train.", least=1)
    max_windows: int = setting(0, "Windows to train, if that is less; 0: all epochs.", least=0)
    eval_every: int = setting(0, "Windows between validations; 0: once an epoch.", least=0)
    windows_per_call: int = setting(50, "K: windows in one call of the compiled loop.", least=1)
    jit_compile: bool = setting(True, "Compile the loop with XLA.")
    seed: int = setting(0, "Of first weights, dropout and the sample.")
    sample_length: int = setting(600, "Tokens of generated text at the end.")
    temperature: float = setting(0.8, "Of the sample: below 1 bolder, above 1 wilder.")
    histogram_every: int = setting(1000, "Windows between histograms; 0: none.", least=0)


PROMPT = 100  # tokens of the test part that the sample goes on from

run.define_flags(Settings, PRESETS)
PROFILE = flags.DEFINE_string("profile_windows", None, "first:last window to trace, as 100:150.")


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


def build_readout(
    settings: Settings, vocabulary_size: int, seed: Seed
) -> Readout | Callable[[tf.Variable], Readout] | None:
    """What `LanguageModel` takes: None for the full one."""
    names = ("full", "chunked", "adaptive", "sampled")
    checks.check_choice("readout", settings.readout, names)
    if settings.readout in ("adaptive", "sampled"):
        if settings.tokens != "words":
            raise ValueError(
                f"--readout={settings.readout} needs ids sorted by frequency, as --tokens=words "
                f"has them, and --tokens={settings.tokens} has not. Use chunked or full."
            )
        if settings.tied:
            raise ValueError(
                f"--readout={settings.readout} has weights of its own and cannot be --tied. Use "
                "chunked or full, or --notied."
            )
    common: dict[str, Any] = dict(
        seed=seed,
        chunk=settings.readout_chunk,
        initializer=initializers.uniform(settings.init_scale) if settings.init_scale else None,
    )
    sizes = (settings.top_hidden or settings.hidden, vocabulary_size)
    if settings.readout == "full":
        return None
    if settings.readout == "adaptive":
        default = f"{vocabulary_size // 10},{vocabulary_size // 2}"
        cutoffs = (settings.cutoffs or default).split(",")
        if not all(cutoff.isdecimal() for cutoff in cutoffs):
            raise ValueError(f"cutoffs ({settings.cutoffs!r}) must be ids, as {default}.")
        return tbptt.AdaptiveSoftmax(*sizes, cutoffs=[int(c) for c in cutoffs], **common)
    if settings.readout == "sampled":
        return tbptt.SampledSoftmax(*sizes, samples=settings.samples, **common)
    if settings.tied:
        return lambda table: tbptt.ChunkedSoftmax(*sizes, table=table, **common)
    return tbptt.ChunkedSoftmax(*sizes, **common)


def build_model(settings: Settings, vocabulary_size: int) -> tbptt.LanguageModel:
    """Embedding, layers, readout."""
    seeds = tbptt.split_seed(tbptt.make_seed(settings.seed), settings.layers + 1)
    _, of_readout = tbptt.split_seed(seeds[-1], 2)  # as LanguageModel does for its own
    initializer = initializers.uniform(settings.init_scale) if settings.init_scale else None
    precisions = {"float32": None, "bfloat16": tf.bfloat16}
    checks.check_choice("precision", settings.precision, list(precisions))
    compute_dtype = precisions[settings.precision]
    common: dict[str, Any] = dict(
        initializer=initializer,
        learn_initial_state=settings.learn_initial_state,
        recurrent_dropout=settings.recurrent_dropout,
        weight_dropout=settings.weight_dropout,
        backend=settings.backend,
        keep=settings.keep,
        compute_dtype=compute_dtype,
    )
    of_lstm: dict[str, Any] = dict(
        forget_bias=settings.forget_bias,
        zoneout=(settings.zoneout, settings.zoneout),
        layer_norm=settings.layer_norm,
    )
    cells: dict[str, Callable[..., tbptt.LSTM | tbptt.GRU]] = {
        "lstm": functools.partial(tbptt.LSTM, **of_lstm),
        "gru": tbptt.GRU,
    }
    checks.check_choice("cell", settings.cell, list(cells))
    if settings.cell != "lstm" and (settings.zoneout or settings.layer_norm):
        raise ValueError(
            f"--zoneout and --layer_norm are for --cell=lstm, not --cell={settings.cell}."
        )
    sizes = [settings.embedding] + [settings.hidden] * settings.layers
    sizes[-1] = settings.top_hidden or settings.hidden
    layers = [
        cells[settings.cell](sizes[i], sizes[i + 1], seed=seeds[i], **common)
        for i in range(settings.layers)
    ]
    between = settings.dropout if settings.core_dropout < 0 else settings.core_dropout
    core = tbptt.Stack(layers, dropout_rate=between, dropout_per=settings.dropout_per)
    return tbptt.LanguageModel(
        vocabulary_size,
        settings.embedding,
        core,
        seed=seeds[-1],
        tied=settings.tied,
        readout=build_readout(settings, vocabulary_size, of_readout),
        dropout_rate=settings.dropout,
        dropout_per=settings.dropout_per,
        embedding_dropout=settings.embedding_dropout,
        activation_penalty=settings.activation_penalty,
        slowness_penalty=settings.slowness_penalty,
        initializer=initializer,
        compute_dtype=compute_dtype,
    )


def build_optimizer(
    settings: Settings, windows: int, windows_per_epoch: int
) -> tuple[optimizers.GradientTransform, optimizers.Schedule]:
    """Clipping and descent; and the learning rate, to be shown."""
    rate = settings.learning_rate
    schedules = {
        "constant": lambda: optimizers.constant(rate),
        "cosine": lambda: optimizers.warmup_cosine(rate, min(settings.warmup, windows), windows),
        "epoch_decay": lambda: optimizers.epoch_decay(
            rate, settings.decay, settings.constant_epochs, windows_per_epoch
        ),
    }
    checks.check_choice("schedule", settings.schedule, list(schedules))
    schedule = schedules[settings.schedule]()
    descents = {
        "sgd": lambda: optimizers.sgd(schedule),
        "momentum": lambda: optimizers.sgd(schedule, momentum=0.9),
        "rmsprop": lambda: optimizers.rmsprop(schedule),
        "adam": lambda: optimizers.adam(schedule),
        "sgd_decay": lambda: optimizers.chain(
            optimizers.add_weight_decay(settings.weight_decay), optimizers.sgd(schedule)
        ),
        "adamw": lambda: optimizers.adamw(schedule, weight_decay=settings.weight_decay),
    }
    checks.check_choice("optimizer", settings.optimizer, list(descents))
    clip = [optimizers.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return optimizers.chain(*clip, descents[settings.optimizer]()), schedule


def figure(settings: Settings) -> tuple[str, Callable[[tbptt.Evaluation], float]]:
    """What this kind of token is judged by: its name, and how to read it."""
    if settings.tokens == "words":
        return "perplexity", lambda evaluation: evaluation.perplexity
    name = "bits_per_byte" if settings.tokens == "bytes" else "bits_per_character"
    return name, lambda evaluation: evaluation.bits


def main() -> None:
    """Reads, trains, tests, samples."""
    began = time.monotonic()
    with run.usage_errors():
        settings = run.settings_from_flags(Settings, PRESETS)
        check_sampling(settings.sample_length, settings.temperature)
        metric, read = figure(settings)
        if settings.keep == "states" and (settings.stride or settings.jitter):
            raise ValueError(
                "--keep=states keeps no state in mid-window, where --stride and --jitter go on "
                "from. Use --keep=gates."
            )
        vocabulary, parts = load(settings)
        training = open_stream(settings, vocabulary, parts[0], settings.rows, training=True)
        feed = tbptt.open_feed(training, settings.windows_per_call)
        model = build_model(settings, len(vocabulary))
        windows = common.windows_to_train(settings, training.windows_per_epoch)
        optimizer, schedule = build_optimizer(settings, windows, training.windows_per_epoch)
        average = tbptt.Average(model) if settings.average_patience else None
        trainer = tbptt.Trainer(
            model,
            None,  # the model scores: not every readout makes logits
            optimizer,
            reduction=settings.reduction,
            seed=settings.seed,
            average=average,
            jit_compile=settings.jit_compile,
        )
        # Documents are whole whatever the rows; one text is read in one row for the test.
        test_rows = settings.valid_rows if isinstance(parts[2], tbptt.Pieces) else 1
        validating, testing = (
            open_stream(settings, vocabulary, part, rows, training=False)
            for part, rows in zip(parts[1:], (settings.valid_rows, test_rows), strict=True)
        )
        validate, test = (
            tbptt.Evaluator(model, None, part, jit_compile=settings.jit_compile)
            for part in (validating, testing)
        )
        profile = run.profile_range(PROFILE.value)
        logdir = run.claim_logdir("language_model", settings)

    vocabulary.save(logdir / "vocabulary.json")

    trigger = NonMonotonic(settings.average_patience or 1)

    def judge() -> tuple[float, float]:
        evaluation = validate()
        if average is not None and trigger.offer(evaluation.loss):
            average.begin()
        return evaluation.loss, read(evaluation)

    fitted = common.fit(
        logdir,
        settings,
        trainer,
        feed,
        schedule,
        windows=windows,
        metric=metric,
        validate=judge,
        average=average,
        histogram_every=settings.histogram_every,
        actions=[tbptt.Every(0, tbptt.Profile(str(logdir), *profile))] if profile else [],
    )
    prompt = testing.read(0, 0, min(PROMPT, testing.row_length)).inputs[0]
    sample = tbptt.generate(
        model,
        prompt,
        settings.sample_length,
        seed=tbptt.make_seed(settings.seed),
        temperature=settings.temperature,
    )
    text = f"{vocabulary.decode(prompt)}|{vocabulary.decode(sample)}"
    fitted.writer.text(windows, summaries.SAMPLE, text)
    print(f"\nThe test part begins, and from | on the model goes on:\n\n{text}\n")
    common.finish(
        fitted, logdir, settings, began,
        test=read(test()),
        metric=metric,
        tokens=windows * settings.rows * training.truncation.nominal_length,
        tokens_per_second=round(fitted.tokens_per_second),
    )  # fmt: skip


if __name__ == "__main__":
    run.launch(main)
