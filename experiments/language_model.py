"""A recurrent language model, trained by truncated back-propagation on one long text.

    python -m experiments.language_model
    python -m experiments.language_model --corpus=PATH --hidden=512 --logdir=runs/mine
    python -m experiments.language_model --documents=speeches.jsonl --test_documents=9
    python -m experiments.language_model --config=ptb_small \\
        --train_text=ptb.train.txt --valid_text=ptb.valid.txt --test_text=ptb.test.txt

The first command learns Python's own documentation, character by character, in a few minutes on
two cores; README.md gives its result. The presets ptb_* are those of Zaremba, Sutskever &
Vinyals (2014) and of the TensorFlow PTB tutorial; the test perplexities to expect on the Penn
Treebank are 115.9 (small), 82.1 (medium) and 78.3 (large).
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

import tbptt
from experiments import common
from experiments.common import check_memory, core_parameters
from experiments.language_settings import Settings
from experiments.language_text import Data, load, open_stream
from tbptt import experiment, optimizers
from tbptt.layers import initializers
from tbptt.serving.sampling import Sampler, Sampling
from tbptt.summaries import tags
from tbptt.training.average import NonMonotonic
from tbptt.types import Readout, Seed

PROMPT = 100  # first tokens of the test part, which the sample continues


def check_readout(settings: Settings, data: Data) -> None:
    """Raises ValueError unless the readout fits the ids of the data, and the other settings."""
    if settings.readout in ("adaptive", "sampled"):
        if not data.by_frequency:
            kind = data.vocabulary.kind
            advice = "Use chunked or full."
            if kind == "words":
                advice = "Prepare it again, which sorts them, or use chunked or full."
            raise ValueError(
                f"--readout={settings.readout} needs ids sorted by frequency, as words have them, "
                f"and {kind} of this corpus have not. {advice}"
            )
        if settings.tied:
            raise ValueError(
                f"--readout={settings.readout} has weights of its own and cannot be --tied. Use "
                "chunked or full, or --notied."
            )


def build_readout(
    settings: Settings, vocabulary_size: int, seed: Seed
) -> Readout | Callable[[tf.Variable], Readout] | None:
    """Builds the `readout` argument of `LanguageModel`: None for the full softmax."""
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
    """Builds the language model: embedding, recurrent layers, readout."""
    sizes = [settings.embedding] + [settings.hidden] * settings.layers
    sizes[-1] = settings.top_hidden or settings.hidden
    tables = vocabulary_size * (sizes[0] + (0 if settings.tied else sizes[-1]))
    check_memory(core_parameters(settings.cell, sizes) + tables)
    seeds = tbptt.split_seed(tbptt.make_seed(settings.seed), settings.layers + 1)
    _, of_readout = tbptt.split_seed(seeds[-1], 2)  # as LanguageModel does for its own
    initializer = initializers.uniform(settings.init_scale) if settings.init_scale else None
    precisions = {"float32": None, "bfloat16": tf.bfloat16}
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
    """Returns the optimizer, with gradient clipping, and its learning rate schedule."""
    rate = settings.learning_rate
    schedules = {
        "constant": lambda: optimizers.constant(rate),
        "cosine": lambda: optimizers.warmup_cosine(rate, min(settings.warmup, windows), windows),
        "epoch_decay": lambda: optimizers.epoch_decay(
            rate, settings.decay, settings.constant_epochs, windows_per_epoch
        ),
    }
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
    clip = [optimizers.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    optimizer = optimizers.chain(*clip, descents[settings.optimizer]())
    if settings.accumulate > 1:
        optimizer = optimizers.accumulate(settings.accumulate, optimizer)
    return optimizer, schedule


def figure(kind: str) -> tuple[str, Callable[[tbptt.Evaluation], float]]:
    """Returns the figure for a kind of tokens: its name, and how to read it from an evaluation."""
    if kind == "words":
        return "perplexity", lambda evaluation: evaluation.perplexity
    name = "bits_per_byte" if kind == "bytes" else "bits_per_character"
    return name, lambda evaluation: evaluation.bits


def main(settings: Settings, options: experiment.Options) -> experiment.Result:
    """Trains a language model, tests it, and prints a sample of its text."""
    began = time.monotonic()
    replicas = experiment.replicas_of(options, settings.rows)
    with experiment.usage_errors():
        sampling = Sampling(temperature=settings.temperature)
        loaded = load(settings)
        vocabulary, parts = loaded.vocabulary, loaded.parts
        check_readout(settings, loaded)
        metric, read = figure(vocabulary.kind)
        training = open_stream(settings, vocabulary, parts[0], settings.rows, training=True)
        replicas.rows_of_each(settings.rows)
        if settings.dynamic_rate and replicas.count > 1:
            raise ValueError(
                f"--dynamic_rate learns on one replica, and there are {replicas.count}. Leave it "
                "out, or use --strategy=one."
            )
        feed = tbptt.open_feed(training, settings.windows_per_call, replicas=replicas)
        windows = common.windows_to_train(settings, options, training.windows_per_epoch)
        optimizer, schedule = build_optimizer(settings, windows, training.windows_per_epoch)
        with replicas.scope():
            model = build_model(settings, len(vocabulary))
            average = tbptt.Average(model) if settings.average_patience else None
            trainer = tbptt.Trainer(
                model,
                optimizer,
                reduction=settings.reduction,
                seed=settings.seed,
                average=average,
                replicas=replicas,
                jit_compile=settings.jit_compile,
            )
        # Documents stay whole with any number of rows; a single text is tested in one row.
        test_rows = settings.valid_rows if isinstance(parts[2], tbptt.Segments) else 1
        validating, testing = (
            open_stream(settings, vocabulary, part, rows, training=False)
            for part, rows in zip(parts[1:], (settings.valid_rows, test_rows), strict=True)
        )
        validate, test = (
            common.evaluator(settings.jit_compile, model, part, replicas)
            for part in (validating, testing)
        )
        adapting = {
            name: tbptt.Evaluator(
                model,
                part,
                optimizer=optimizers.adam(settings.dynamic_rate),
                jit_compile=settings.jit_compile,
            )
            for name, part in (("dynamic_valid", validating), ("dynamic_test", testing))
            if settings.dynamic_rate
        }
        of_data = experiment.data_of(training, validating, testing)
    trigger = NonMonotonic(settings.average_patience or 1)

    def judge() -> tuple[tbptt.Evaluation, float]:
        evaluation = validate()
        if average is not None and trigger.offer(evaluation.loss):
            average.begin()
        return evaluation, read(evaluation)

    with experiment.Claim(settings, options, replicas, data=of_data) as claim:
        fitted = experiment.fit(
            settings,
            claim,
            trainer,
            feed,
            schedule,
            windows=windows,
            metric=metric,
            validate=judge,
            eval_every=settings.eval_every,
            average=average,
            histogram_every=settings.histogram_every,
            parts={"trigger": trigger},
            preprocessing={"vocabulary": vocabulary},
        )
        of_documents = {}
        if isinstance(training, tbptt.DocumentStream):
            of_documents["utilisation"] = round(training.utilisation, 4)
        dynamic = {name: read(evaluator()) for name, evaluator in adapting.items()}

        def show() -> None:
            prompt = testing.read(0, 0, min(PROMPT, testing.row_length), slice(1)).inputs[0]
            sampler = Sampler(model, rows=1, jit_compile=False)
            seeds = [[0, settings.seed]]
            sample = sampler.sample(prompt, settings.sample_length, seeds, sampling)
            text = f"{vocabulary.decode(prompt)}|{vocabulary.decode(sample[:, 0])}"
            fitted.writer.text(windows, tags.SAMPLE, text)
            if claim.writes:
                experiment.output.tell(
                    f"\nThe test part begins, and from | on the model goes on:\n\n{text}\n"
                )

        tested = test()
        return experiment.finish(
            fitted, settings, claim, began,
            tested=tested,
            figure=read(tested),
            metric=metric,
            **dynamic,
            **of_documents,
            tokens=windows * settings.rows * training.truncation.nominal_length,
            tokens_per_second=round(fitted.tokens_per_second),
            show=show,
        )  # fmt: skip


if __name__ == "__main__":
    experiment.launch(main, Settings)
