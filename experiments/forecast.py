"""Forecasts time series: the next line, the line `--horizon` ahead, or all lines up to it.

    python -m experiments.forecast
    python -m experiments.forecast --data=ETTh1.csv --train=8640 --valid=2880 --test=2880
    python -m experiments.forecast --horizon=24 --path

With --path a decoder forecasts line by line, each time reading its own last forecast. The figure is
the mean squared error over the test part and the chosen columns, which are standardised on the
training part; beside it stands that of persistence, which predicts that the last value stays. Both
are scored on the same lines of the test part, and the result has their number: the `scored`
forecasts, one from each line all of whose targets are present. The first lines after a gap are not
scored, because there is no line one horizon before them in the same stretch.

Without --data it learns waves and noise that it makes itself, two columns, `early` and `late`.
--data is a CSV file with a line of column names; a first column of times is read as such, a gap in
them resets the state, and missing values are neither read nor scored. A plot of forecast against
truth is `forecast.png` in the run's folder, and in TensorBoard (pip install matplotlib).
"""

import dataclasses
import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

import tbptt
from experiments import common
from tbptt import experiment
from tbptt.experiment import setting
from tbptt.summaries import tags
from tbptt.training.window import start_state

WARM_UP = 256  # lines of a held-out part that are read before the first scored line
SHOWN = 240  # lines in the plot


@dataclasses.dataclass(frozen=True)
class Settings(common.CommonSettings):
    """The settings of a forecasting experiment, which decide all numbers of a run."""

    data: str = setting("", "A CSV file; empty: waves.")
    columns: str = setting("", "Columns to read, by commas; empty: all.")
    targets: str = setting("", "Columns to predict, by commas; empty: all that are read.")
    time_column: str = setting(
        "", "Column of times; empty: the first, unless it holds numbers.", used_with={"data": None}
    )
    horizon: int = setting(1, "Number of lines to forecast ahead.", least=1)
    path: bool = setting(False, "Forecast all lines up to the horizon, by a decoder.")
    teacher_forcing: float = setting(
        0.0,
        "Probability of teacher forcing in training, with --path.",
        least=0,
        most=1,
        used_with={"path": (True,)},
    )
    train: int = setting(0, "Lines of the training part; 0: six tenths.", least=0)
    valid: int = setting(0, "Lines after them: validation; 0: two tenths.", least=0)
    test: int = setting(0, "Lines after those: test; 0: the rest.", least=0)
    rows: int = setting(8, "B: rows, stretches read side by side.", least=1)
    hidden: int = setting(64, "Units in a layer.", least=1)
    dropout: float = setting(0.2, "Rate of dropout on the layers' outputs.", least=0, below=1)
    learning_rate: float = setting(2e-3, "Peak of the schedule: warm-up, then cosine.", least=0)
    max_epochs: int = setting(40, "Epochs to train.", least=1)


def load(settings: Settings) -> tbptt.Series:
    """Reads or makes the series, with the chosen columns, targets first."""
    columns = named(settings.columns) or None
    if settings.data:
        series = tbptt.read_series(settings.data, columns, time_column=settings.time_column or None)
    else:
        made = waves(settings.seed)
        series = choose(made, columns or made.names)
    chosen = named(settings.targets)
    names = [*chosen, *(name for name in series.names if name not in chosen)]  # targets first
    return choose(series, names)


def named(text: str) -> list[str]:
    """Returns the names of columns between commas; raises ValueError if one is there twice."""
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"The column {name!r} is asked for twice. Name each column once.")
    return names


def choose(series: tbptt.Series, names: Sequence[str]) -> tbptt.Series:
    """Returns a series of these columns, in this order; raises ValueError if one is missing."""
    for name in names:
        if name not in series.names:
            raise ValueError(f"There is no column {name!r}. There are: {', '.join(series.names)}.")
    order = [series.names.index(name) for name in names]
    return tbptt.Series(series.values[:, order], tuple(names), series.times)


def waves(seed: int, lines: int = 4000) -> tbptt.Series:
    """Makes a series of two columns, a wave and the same wave 20 lines later, both with noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(lines + 20)
    wave = np.sin(2 * np.pi * t / 24) + 0.5 * np.sin(2 * np.pi * t / 168)
    values = np.stack([wave[20:], wave[:-20]], axis=1) + rng.normal(0, 0.1, [lines, 2])
    times = np.datetime64("2020-01-01T00") + np.arange(lines)
    return tbptt.Series(values, ("early", "late"), times)


def parts(settings: Settings, lines: int) -> tuple[int, int, int]:
    """Returns the lines at which the training, the validation and the test part end."""
    train = settings.train or round(0.6 * lines)
    valid = train + (settings.valid or round(0.2 * lines))
    test = valid + settings.test if settings.test else lines
    if not 0 < train < valid < test <= lines:
        raise ValueError(
            f"--train, --valid and --test end at lines {train}, {valid} and {test} of {lines}, "
            "but each must have some. Use smaller parts."
        )
    return train, valid, test


def check_scored(stream: tbptt.SeriesStream, part: str, first: int, last: int) -> None:
    """Raises ValueError if no target of a part can be scored."""
    if not stream.scored:
        raise ValueError(
            f"Nothing can be scored in the {part} part, lines {first} to {last - 1} of the series: "
            "all targets are missing, or it is too short for the horizon. Choose other --targets, "
            "or other --train, --valid and --test."
        )


def build_model(settings: Settings, stream: tbptt.SeriesStream, columns: int, outputs: int) -> Any:
    """Builds a model whose core reads changes and whose outputs are added to the current values."""
    if not settings.path:
        return common.build_model(
            settings, stream.input_size, outputs, tbptt.squared_error, bypass=columns
        )
    seeds = tbptt.split_seed(tbptt.make_seed(settings.seed), 3)
    return tbptt.EncoderDecoder(
        common.build_core(settings, stream.input_size - columns, seeds[0]),
        common.build_core(settings, outputs, seeds[1]),
        outputs,
        tbptt.squared_error,
        steps=settings.horizon,
        seed=seeds[2],
        teacher_forcing=settings.teacher_forcing,
        dropout_rate=settings.dropout,
        input_dropout_rate=settings.input_dropout,
        bypass=columns,
    )


def predict(model: Any, stream: tbptt.SeriesStream) -> np.ndarray:
    """Computes the outputs for every step of a stream of one row, `[N, outputs]`."""
    windows, _ = stream.windows(tbptt.Cursor(), stream.windows_per_epoch)
    state = model.initial_state(1)
    run_window = tf.function(
        lambda w, s: model(w.inputs, start_state(model, w, s), w.controls), autograph=False
    )
    outputs = []
    for k in range(stream.windows_per_epoch):
        window = tf.nest.map_structure(lambda f: None if f is None else tf.constant(f), windows)
        made, state = run_window(window.at(k), state)
        outputs.append(made[:, 0].numpy())
    return np.concatenate(outputs)[: stream.row_length]


def by_line(outputs: np.ndarray, places: np.ndarray, lines: int) -> np.ndarray:
    """Arranges forecasts by the line at which each begins, `[lines, H]`.

    Args:
      outputs: the forecasts, `[N, H]`.
      places: `[N]`, the line at which each begins; those outside `[0, lines)` are left out.
      lines: the number of lines; a line without a forecast, as after a gap, is NaN.
    """
    forecasts = np.full([lines, outputs.shape[1]], np.nan)
    inside = (places >= 0) & (places < lines)
    forecasts[places[inside]] = outputs[inside]
    return forecasts


def draw(truth: np.ndarray, forecasts: np.ndarray, name: str) -> bytes | None:
    """Draws truth `[N]` and forecasts `[N, H]`, each of H lines from its own on, as a PNG file.

    Returns:
      The content of the file; None if matplotlib is not installed, which is logged.
    """
    try:
        import matplotlib
    except ImportError:
        logging.info("There is no figure without matplotlib: pip install matplotlib")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3), layout="constrained")
    axes.plot(truth, label="truth", color="black", linewidth=1)
    steps = forecasts.shape[1]
    shown = [forecasts[:, 0]] if steps == 1 else forecasts[::steps]  # each begins at the last's end
    for k, values in enumerate(shown):
        lines = np.arange(k * steps, min(k * steps + len(values), len(truth)))
        label = None if k else "forecast"
        axes.plot(lines, values[: len(lines)], label=label, color="C1", linewidth=1.2)
    axes.set_xlabel("lines from the beginning of the test part")
    axes.set_ylabel(name)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=110)
    pyplot.close(figure)
    return content.getvalue()


def main(settings: Settings, options: experiment.Options) -> experiment.Result:
    """Trains a forecasting model, tests it and persistence, and draws its forecasts."""
    began = time.monotonic()
    replicas = experiment.replicas_of(options, settings.rows)
    with experiment.usage_errors():
        series = load(settings)
        train_end, valid_end, test_end = parts(settings, len(series))
        standardizer = tbptt.Standardizer.of(series.part(0, train_end))
        names = named(settings.targets) or list(series.names)
        masked = bool(np.isnan(series.values).any())

        def stream(first: int, last: int, **more: Any) -> tbptt.SeriesStream:
            return tbptt.SeriesStream(
                [series.part(first, last)], standardizer, targets=names, horizon=settings.horizon,
                path=settings.path, masked=masked, changes=True, seed=settings.seed, **more,
            )  # fmt: skip

        def held_out(part: str, first: int, last: int) -> tbptt.SeriesStream:
            # The number of lines read before the first forecast is the same at every horizon.
            warm_up = min(first, WARM_UP + settings.horizon - 1)
            made = stream(first - warm_up, last, rows=1, window_length=64, warm_up=warm_up)
            check_scored(made, part, first, last)
            return made

        training = stream(0, train_end, rows=settings.rows, truncation=common.truncation(settings))
        check_scored(training, "training", 0, train_end)
        feed = tbptt.open_feed(training, settings.windows_per_call, replicas=replicas)
        windows = common.windows_to_train(settings, options, training.windows_per_epoch)
        optimizer, schedule = common.build_optimizer(settings, windows)
        with replicas.scope():
            model = build_model(settings, training, len(series.names), len(names))
            trainer = tbptt.Trainer(
                model, optimizer,
                seed=settings.seed, replicas=replicas, jit_compile=settings.jit_compile,
            )  # fmt: skip
        validating = held_out("validation", train_end, valid_end)
        testing = held_out("test", valid_end, test_end)
        validate, test = (
            common.evaluator(settings.jit_compile, model, part, replicas)
            for part in (validating, testing)
        )
        data = experiment.data_of(training, validating, testing)
    with experiment.Claim(settings, options, replicas, data=data) as claim:
        fitted = experiment.fit(
            settings, claim, trainer, feed, schedule,
            windows=windows, metric="mse", validate=common.figure_of(validate),
            eval_every=settings.eval_every,
            preprocessing={
                "standardizer": standardizer, "columns": list(series.names), "targets": names,
                "horizon": settings.horizon, "path": settings.path, "masked": masked,
            },
        )  # fmt: skip
        tested = test()
        logging.info(
            "Model and persistence are scored on the same %s forecasts of lines %s to %s.",
            f"{testing.scored:,}", f"{valid_end:,}", f"{test_end - 1:,}",
        )  # fmt: skip

        def show() -> None:
            chosen = [series.names.index(name) for name in names]
            begin = valid_end - min(valid_end, WARM_UP + settings.horizon - 1)
            outputs = predict(model, testing)
            outputs = outputs.reshape([len(outputs), -1, len(names)])
            outputs = standardizer.undo(outputs, chosen)[..., -1]
            lines, ahead = (
                min(SHOWN, test_end - valid_end),
                1 if settings.path else settings.horizon,
            )
            forecasts = by_line(outputs, begin + testing.origins + ahead - valid_end, lines)
            truth = series.values[valid_end : valid_end + lines, chosen[-1]]
            png = draw(truth, forecasts, names[-1])
            if png is not None:
                if claim.writes:
                    experiment.write_file(claim.folder / "forecast.png", png)
                fitted.writer.picture(windows, tags.FORECAST, png)

        return experiment.finish(
            fitted, settings, claim, began,
            tested=tested,
            metric="mse",
            persistence=testing.persistence(),
            scored=int(tested.weight_sum),
            steps_per_second=round(fitted.tokens_per_second),
            show=show,
        )  # fmt: skip


if __name__ == "__main__":
    experiment.launch(main, Settings)
