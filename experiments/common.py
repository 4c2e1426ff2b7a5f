"""Settings, models, optimizers and evaluation that several experiments share."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

import tbptt
from tbptt import experiment, optimizers
from tbptt.distribution import Replicas
from tbptt.experiment import setting
from tbptt.experiment.settings import check_profile
from tbptt.types import Core, Loss, Seed, Stream

CELLS: dict[str, Callable[..., Any]] = {"lstm": tbptt.LSTM, "gru": tbptt.GRU}
BACKENDS = ("auto", "native", "fused", "scan", "reference", "cudnn")


@dataclasses.dataclass(frozen=True)
class ModelSettings(experiment.Settings):
    """The settings of all models on sequences of features; each experiment has its own defaults."""

    rows: int = setting(16, "B: rows, streams read side by side.", least=1)
    cell: str = setting("lstm", "The recurrent layers", choices=tuple(CELLS))
    hidden: int = setting(128, "Units in a layer.", least=1)
    layers: int = setting(1, "Number of layers.", least=1, most=1000)
    dropout: float = setting(0.0, "Rate of dropout on the layers' outputs.", least=0, below=1)
    input_dropout: float = setting(0.0, "Rate of dropout on the inputs.", least=0, below=1)
    recurrent_dropout: float = setting(
        0.0, "Rate of dropout from step to step, one mask a window.", least=0, below=1
    )
    learning_rate: float = setting(3e-3, "Peak of the schedule: warm-up, then cosine.", least=0)
    weight_decay: float = setting(0.01, "Decoupled weight decay.", least=0)
    clip_norm: float = setting(1.0, "Largest norm of the gradient; 0: no clipping.", least=0)
    backend: str = setting("auto", "Backend that unrolls windows", choices=BACKENDS)
    max_windows: int = setting(0, "Windows to train at most; 0: all epochs.", least=0)
    windows_per_call: int = setting(50, "K: windows in one call of the compiled loop.", least=1)
    jit_compile: bool = setting(True, "Compile the loop with XLA.")


@dataclasses.dataclass(frozen=True)
class CommonSettings(ModelSettings):
    """The settings of an experiment that trains for epochs on windows of one kind."""

    window_length: int = setting(
        64, "T: steps in a window; the gradient goes no further back.", least=1
    )
    stride: int = setting(0, "Steps that a window advances; 0: its length.", least=0)
    burn_in: int = setting(0, "First steps that only refresh the state.", least=0)
    max_epochs: int = setting(20, "Epochs to train.", least=1)
    eval_every: int = setting(0, "Windows between validations; 0: once an epoch.", least=0)

    def check_together(self) -> None:
        """Raises ValueError if window length, stride and burn-in do not fit together."""
        truncation(self)


def truncation(settings: CommonSettings) -> tbptt.Truncation:
    """Returns the truncation of the settings: window length, stride and burn-in."""
    return tbptt.Truncation(
        settings.window_length, stride=settings.stride or None, burn_in=settings.burn_in
    )


def build_core(settings: ModelSettings, input_size: int, seed: Seed) -> Core:
    """Builds the recurrent layers of the settings, as one `Stack`."""
    sizes = [input_size] + [settings.hidden] * settings.layers
    check_memory(core_parameters(settings.cell, sizes))
    seeds = tbptt.split_seed(seed, settings.layers)
    layers = [
        CELLS[settings.cell](
            sizes[i],
            sizes[i + 1],
            seed=seeds[i],
            recurrent_dropout=settings.recurrent_dropout,
            backend=settings.backend,
        )
        for i in range(settings.layers)
    ]
    return tbptt.Stack(layers, dropout_rate=settings.dropout)


def core_parameters(cell: str, sizes: Sequence[int]) -> int:
    """Returns the number of parameters of layers of a cell, without biases."""
    gates = {"lstm": 4, "gru": 3}[cell]
    return sum(gates * (below + size) * size for below, size in itertools.pairwise(sizes))


def check_memory(parameters: int) -> None:
    """Raises ValueError if this machine's memory is too small to train so many parameters.

    Each needs 16 bytes: its value, its gradient, and two numbers of Adam's state. A GPU's own
    memory is not checked.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 16 * parameters > memory and not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            f"{parameters:,} parameters need {16 * parameters / 1e9:,.0f} GB to be trained, and "
            f"this machine has {memory / 1e9:,.0f} GB. Use a smaller --hidden or fewer --layers."
        )


def build_model(
    settings: ModelSettings, input_size: int, output_size: int, loss: Loss, **more: Any
) -> tbptt.SequenceModel:
    """Builds core and readout; `more` holds arguments of `SequenceModel`, as metrics and bypass."""
    seeds = tbptt.split_seed(tbptt.make_seed(settings.seed), 2)
    return tbptt.SequenceModel(
        build_core(settings, input_size - more.get("bypass", 0), seeds[0]),
        output_size,
        loss,
        seed=seeds[1],
        dropout_rate=settings.dropout,
        input_dropout_rate=settings.input_dropout,
        **more,
    )


def windows_to_train(settings: Any, options: experiment.Options, windows_per_epoch: int) -> int:
    """Returns the number of windows to train: all epochs, or `max_windows` if that is fewer.

    Raises:
      ValueError: --profile_windows go beyond the last window.
    """
    windows = settings.max_epochs * windows_per_epoch
    windows = min(windows, settings.max_windows or windows)
    check_profile(options, windows)
    return windows


def build_optimizer(
    settings: ModelSettings, windows: int
) -> tuple[optimizers.GradientTransform, optimizers.Schedule]:
    """Returns the optimizer, gradient clipping and AdamW, and its learning rate schedule."""
    schedule = optimizers.warmup_cosine(settings.learning_rate, min(100, windows), windows)
    clip = [optimizers.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    descent = optimizers.adamw(schedule, weight_decay=settings.weight_decay)
    return optimizers.chain(*clip, descent), schedule


def evaluator(jit_compile: bool, model: Any, stream: Stream, replicas: Replicas) -> tbptt.Evaluator:
    """Returns an evaluator on all replicas, or on each alone if they cannot share the rows."""
    who = None if stream.rows % replicas.count else replicas
    return tbptt.Evaluator(model, stream, replicas=who, jit_compile=jit_compile)


def figure_of(evaluator: tbptt.Evaluator) -> Callable[[], tuple[tbptt.Evaluation, float]]:
    """Returns the function `validate` of `fit` for experiments whose figure is the loss itself."""

    def validate() -> tuple[tbptt.Evaluation, float]:
        evaluation = evaluator()
        return evaluation, evaluation.loss

    return validate
