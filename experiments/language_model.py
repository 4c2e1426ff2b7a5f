"""A recurrent language model, trained by truncated back-propagation on one long text.

    python -m experiments.language_model
    python -m experiments.language_model --corpus=PATH --hidden=512 --logdir=runs/mine
    python -m experiments.language_model --config=ptb_small \\
        --train_text=ptb.train.txt --valid_text=ptb.valid.txt --test_text=ptb.test.txt

The first learns Python's own documentation, character by character, in a few minutes on
two cores; README.md says what it reaches. The presets ptb_* are Zaremba, Sutskever &
Vinyals (2014), as the TensorFlow PTB tutorial has them; to expect on the Penn Treebank,
test perplexity: small 115.9, medium 82.1, large 78.3.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

import tbptt
from experiments import run
from experiments.run import setting
from tbptt import checks, optimizers, summaries
from tbptt.layers import initializers
from tbptt.serving.generate import check_sampling
from tbptt.state import named_leaves
from tbptt.streams import corpus
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
    valid_rows: int = setting(16, "Rows of the validation; the test is read in one.", least=1)
    cell: str = setting("lstm", "lstm or gru.")
    embedding: int = setting(64, "Size of the embedding.", least=1)
    hidden: int = setting(256, "Units in a layer.", least=1)
    layers: int = setting(1, "Layers.", least=1)
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
    init_scale: float = setting(
        0.0, "Weights start uniform in +-this; 0: Glorot, orthogonal.", least=0
    )
    forget_bias: float = setting(1.0, "First value of the LSTM's forget bias.")
    backend: str = setting("auto", "Unrolls windows: auto, fused, scan, reference or cudnn.")
    keep: str = setting("gates", "gates, or states: less memory, computed again for the gradient.")
    precision: str = setting("float32", "float32 or bfloat16: what products are computed in.")
    optimizer: str = setting("adamw", "sgd, momentum, rmsprop, adam or adamw.")
    learning_rate: float = setting(5e-3, "Learning rate, the peak of its schedule.", least=0)
    schedule: str = setting("cosine", "constant, cosine (to 0 at the end) or epoch_decay.")
    warmup: int = setting(100, "Windows of linear warm-up, with --schedule=cosine.", least=0)
    decay: float = setting(0.5, "Factor an epoch, with --schedule=epoch_decay.", least=0)
    constant_epochs: int = setting(4, "Epochs before it, with --schedule=epoch_decay.", least=0)
    weight_decay: float = setting(0.01, "Decoupled weight decay, with --optimizer=adamw.", least=0)
    clip_norm: float = setting(1.0, "Largest norm of the gradient; 0: no clipping.", least=0)
    reduction: str = setting("mean", "Loss: mean, or sum_over_window averaged over rows.")
    max_epochs: int = setting(18, "Epochs to train.", least=1)
    max_windows: int = setting(0, "Windows to train, if that is less; 0: all epochs.", least=0)
    eval_every: int = setting(0, "Windows between validations; 0: once an epoch.", least=0)
    windows_per_call: int = setting(50, "K: windows in one call of the compiled loop.", least=1)
    jit_compile: bool = setting(True, "Compile the loop with XLA.")
    seed: int = setting(0, "Of first weights, dropout and the sample.")
    sample_length: int = setting(600, "Tokens of generated text at the end.")
    temperature: float = setting(0.8, "Of the sample: below 1 bolder, above 1 wilder.")
    histogram_every: int = setting(1000, "Windows between histograms; 0: none.", least=0)


run.define_flags(Settings, PRESETS)
PROFILE = flags.DEFINE_string("profile_windows", None, "first:last window to trace, as 100:150.")


def load(settings: Settings) -> tuple[corpus.Vocabulary, list[np.ndarray]]:
    """The vocabulary, and the ids of training, validation and test part."""
    files = [settings.train_text, settings.valid_text, settings.test_text]
    size = settings.vocabulary_size or None
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
    sizes = (settings.hidden, vocabulary_size)
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
    layers = [
        cells[settings.cell](sizes[i], sizes[i + 1], seed=seeds[i], **common)
        for i in range(settings.layers)
    ]
    core = tbptt.Stack(layers, dropout_rate=settings.dropout, dropout_per=settings.dropout_per)
    return tbptt.LanguageModel(
        vocabulary_size,
        settings.embedding,
        core,
        seed=seeds[-1],
        tied=settings.tied,
        readout=build_readout(settings, vocabulary_size, of_readout),
        dropout_rate=settings.dropout,
        dropout_per=settings.dropout_per,
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
        vocabulary, (train_ids, valid_ids, test_ids) = load(settings)

        def stream(ids: np.ndarray, rows: int, tail: str) -> tbptt.ContiguousStream:
            return tbptt.ContiguousStream(
                ids,
                rows=rows,
                window_length=settings.window_length,
                vocabulary_size=len(vocabulary),
                tail=tail,
            )

        training = stream(train_ids, settings.rows, "drop")
        feed = tbptt.open_feed(training, settings.windows_per_call)
        model = build_model(settings, len(vocabulary))
        windows = settings.max_epochs * training.windows_per_epoch
        windows = min(windows, settings.max_windows or windows)
        optimizer, schedule = build_optimizer(settings, windows, training.windows_per_epoch)
        trainer = tbptt.Trainer(
            model,
            None,  # the model scores: not every readout makes logits
            optimizer,
            reduction=settings.reduction,
            seed=settings.seed,
            jit_compile=settings.jit_compile,
        )
        validate, test = (
            tbptt.Evaluator(model, None, part, jit_compile=settings.jit_compile)
            for part in (
                stream(valid_ids, settings.valid_rows, "pad"),
                stream(test_ids, 1, "pad"),
            )
        )
        profile = run.profile_range(PROFILE.value)
        logdir = run.claim_logdir("language_model", settings)

    run.announce(logdir, model, windows)
    vocabulary.save(logdir / "vocabulary.json")
    writer = tbptt.SummaryWriter(logdir)
    writer.table(0, summaries.SETTINGS, dataclasses.asdict(settings))
    names = {
        summaries.RESULT_VALID: f"valid {metric}",
        summaries.RESULT_TEST: f"test {metric}",
    }
    writer.hparams(dataclasses.asdict(settings), names)
    best = tbptt.KeepBest(model)
    progress = tbptt.Progress(settings.rows * settings.window_length)

    def log(report: tbptt.Report) -> None:
        if progress.tokens_per_second:  # not of the first call, which compiles
            writer.scalars(report.step, {summaries.TOKENS_PER_SECOND: progress.tokens_per_second})
        writer.scalars(report.step, {
            summaries.LOSS_TRAIN: report.metrics.loss,
            summaries.GRAD_NORM_MEAN: report.metrics.grad_norm_mean,
            summaries.GRAD_NORM_MAX: report.metrics.grad_norm_max,
            summaries.WINDOWS_SKIPPED: report.metrics.skipped,
            summaries.LEARNING_RATE: float(schedule(trainer.step)),
            summaries.HIDDEN_RMS: summaries.state_rms(report.state),
            summaries.EPOCH: report.step / training.windows_per_epoch,
        })  # fmt: skip

    def evaluate(report: tbptt.Report) -> None:
        evaluation = validate()
        better = best.offer(read(evaluation), report.step)
        if better:
            tbptt.save_parameters(logdir / "best_parameters.npz", model)
        writer.scalars(report.step, {summaries.LOSS_VALID: evaluation.loss})
        progress.note(
            f"window {report.step}: valid {metric} {read(evaluation):.4f}"
            + (", the best so far" if better else f"; best was {best.figure:.4f}")
        )

    def histograms(report: tbptt.Report) -> None:
        writer.histograms(report.step, summaries.PARAMETERS, tbptt.named_parameters(model))
        writer.histograms(report.step, summaries.STATE, named_leaves(report.state))

    actions = [
        tbptt.Every(0, progress),
        tbptt.Every(0, log),
        tbptt.Every(settings.eval_every or training.windows_per_epoch, evaluate),
    ]
    if settings.histogram_every:
        actions.append(tbptt.Every(settings.histogram_every, histograms))
    if profile:
        actions.append(tbptt.Every(0, tbptt.Profile(str(logdir), *profile)))
    start = tbptt.Position(trainer.initial_carry(settings.rows))
    tbptt.train(trainer, feed, start, windows=windows, actions=actions)

    best.restore()
    test_figure = read(test())
    writer.scalars(windows, {
        summaries.RESULT_VALID: best.figure, summaries.RESULT_TEST: test_figure
    })  # fmt: skip
    prompt = test_ids[:100]
    sample = tbptt.generate(
        model,
        prompt,
        settings.sample_length,
        seed=tbptt.make_seed(settings.seed),
        temperature=settings.temperature,
    )
    text = f"{vocabulary.decode(prompt)}|{vocabulary.decode(sample)}"
    writer.text(windows, summaries.SAMPLE, text)
    writer.close()
    print(f"\nThe test part begins, and from | on the model goes on:\n\n{text}\n")
    run.write_result(
        logdir,
        settings,
        metric=metric,
        valid=best.figure,
        test=test_figure,
        windows=windows,
        tokens=windows * settings.rows * settings.window_length,
        seconds=round(time.monotonic() - began, 1),
        tokens_per_second=round(progress.tokens_per_second),
    )


if __name__ == "__main__":
    run.launch(main)
