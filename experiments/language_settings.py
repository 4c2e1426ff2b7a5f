"""Settings and presets of `experiments.language_model`."""

import dataclasses
from typing import Any

from experiments import run
from experiments.run import setting

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
class Settings(run.Settings):
    """Everything that decides what a run computes. The defaults are the preset `char`."""

    experiment = "language_model"
    presets = PRESETS

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
    accumulate: int = setting(1, "Windows whose mean gradient makes one update.", least=1)
    reduction: str = setting("mean", "Loss: mean, or sum_over_window averaged over rows.")
    average_patience: int = setting(
        0, "NT-ASGD: average parameters once no better for so many validations; 0: never.", least=0
    )
    max_epochs: int = setting(18, "Epochs to train.", least=1)
    max_windows: int = setting(0, "Windows to train, if that is less; 0: all epochs.", least=0)
    eval_every: int = setting(0, "Windows between validations; 0: once an epoch.", least=0)
    dynamic_rate: float = setting(
        0.0, "Test again, learning the test by Adam on the way, at this rate; 0: do not.", least=0
    )
    windows_per_call: int = setting(50, "K: windows in one call of the compiled loop.", least=1)
    jit_compile: bool = setting(True, "Compile the loop with XLA.")
    sample_length: int = setting(
        600, "Tokens of generated text at the end.", least=1, most=1_000_000, report=True
    )
    temperature: float = setting(0.8, "Of the sample: below 1 bolder, above 1 wilder.", report=True)
    histogram_every: int = setting(
        1000, "Windows between histograms; 0: none.", least=0, report=True
    )
