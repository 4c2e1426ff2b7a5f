"""The settings and presets of `experiments.language_model`."""

import dataclasses
from typing import Any

import tbptt
from experiments.common import BACKENDS
from tbptt import experiment
from tbptt.experiment import setting
from tbptt.streams.corpus import KINDS

# Zaremba et al.: the loss is summed over the window, and learning rate and clipping norm fit
# that; there is no forget bias; the rate is constant for some epochs and then falls every epoch.
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

READOUTS = ("full", "chunked", "adaptive", "sampled")
SHUFFLES = ("none", "offset", "rotate")
# Conditions under which some settings have an effect:
DOCUMENTS = {"documents": None, "prepared": None}
LSTM = {"cell": ("lstm",)}
EPOCH_DECAY = {"schedule": ("epoch_decay",)}


@dataclasses.dataclass(frozen=True)
class Settings(experiment.Settings):
    """The settings of a language model, which decide a run's numbers; defaults: preset `char`."""

    experiment = "language_model"
    presets = PRESETS

    corpus: str = setting("python-docs", "python-docs, python-source, or a text file to split.")
    train_text: str = setting("", "Text file to train on, instead of --corpus.")
    valid_text: str = setting("", "Text file to validate on, with --train_text.")
    test_text: str = setting("", "Text file to test on, with --train_text.")
    documents: str = setting(
        "", "Documents instead: .jsonl, a folder, or a file of one a line; each resets its row."
    )
    prepared: str = setting("", "Folder of tools.prepare instead, split by documents or tokens.")
    valid_documents: int = setting(
        0, "Documents before the test's; 0: a fraction.", least=0, used_with=DOCUMENTS
    )
    test_documents: int = setting(
        0, "Last documents: the test; 0: a fraction.", least=0, used_with=DOCUMENTS
    )
    valid_fraction: float = setting(
        0.04, "Part of tokens or documents before the test part: validation.", least=0, below=1
    )
    test_fraction: float = setting(
        0.1, "Part of tokens or documents at the end: test.", least=0, below=1
    )
    tokens: str = setting(
        "characters", "Kind of tokens; a prepared corpus has its own", choices=KINDS
    )
    vocabulary_size: int = setting(
        0,
        "Most frequent words to keep, <unk> among them; 0: all of the training part.",
        least=0,
        used_with={"tokens": ("words",)},
    )
    rows: int = setting(32, "B: rows, streams read side by side.", least=1)
    window_length: int = setting(
        64, "T: steps in a window; the gradient goes no further back.", least=1
    )
    shuffle: str = setting("none", "How epochs of one text differ", choices=SHUFFLES)
    stride: int = setting(0, "Steps that a window advances; 0: its length.", least=0)
    burn_in: int = setting(0, "First steps that only refresh the state.", least=0)
    jitter: float = setting(0.0, "Standard deviation of a window's length.", least=0)
    cut: float = setting(
        0.0, "Probability that the gradient is cut before a step.", least=0, below=1
    )
    drop_state: float = setting(
        0.0, "Probability that a row forgets its state before a window.", least=0, most=1
    )
    valid_rows: int = setting(16, "Rows of the validation; the test is read in one.", least=1)
    cell: str = setting("lstm", "The recurrent layers", choices=("lstm", "gru"))
    embedding: int = setting(64, "Size of the embedding.", least=1)
    hidden: int = setting(256, "Units in a layer.", least=1)
    layers: int = setting(1, "Number of layers.", least=1, most=1000)
    top_hidden: int = setting(0, "Units in the top layer; 0: as in the others.", least=0)
    core_dropout: float = setting(
        -1.0, "Rate of dropout between the layers; -1: as --dropout.", least=-1, below=1
    )
    tied: bool = setting(False, "Weight tying: readout and embedding share one table.")
    readout: str = setting("full", "Softmax that scores tokens", choices=READOUTS)
    readout_chunk: int = setting(
        2048, "Ids scored at a time, unless --readout=full.", least=1,
        used_with={"readout": READOUTS[1:]},
    )  # fmt: skip
    cutoffs: str = setting(
        "",
        "First ids of the tails, with --readout=adaptive; empty: a tenth and a half of all.",
        used_with={"readout": ("adaptive",)},
    )
    samples: int = setting(
        1000, "Ids drawn a window, with --readout=sampled.", least=1,
        used_with={"readout": ("sampled",)},
    )  # fmt: skip
    learn_initial_state: bool = setting(False, "Rows start from a learned state, not zeros.")
    dropout: float = setting(
        0.25, "Rate of dropout below, between and above the layers.", least=0, below=1
    )
    dropout_per: str = setting("step", "Unit with a dropout mask", choices=("step", "window"))
    recurrent_dropout: float = setting(
        0.0, "Rate of dropout from step to step, one mask a window.", least=0, below=1
    )
    weight_dropout: float = setting(
        0.0, "Rate of dropout on the recurrent weights, one mask a window.", least=0, below=1
    )
    zoneout: float = setting(
        0.0, "Rate at which an LSTM's units keep their old value.", least=0, below=1,
        used_with=LSTM,
    )  # fmt: skip
    layer_norm: bool = setting(False, "Layer normalisation, with --cell=lstm.", used_with=LSTM)
    embedding_dropout: float = setting(
        0.0, "Rate at which ids are dropped from a window.", least=0, below=1
    )
    activation_penalty: float = setting(
        0.0, "AR: weight of the mean square of the outputs in the loss.", least=0
    )
    slowness_penalty: float = setting(
        0.0, "TAR: weight of the mean square of the outputs' change from step to step.", least=0
    )
    init_scale: float = setting(
        0.0, "Initial weights are uniform in +-this; 0: Glorot, orthogonal.", least=0
    )
    forget_bias: float = setting(1.0, "Initial value of the LSTM's forget bias.", used_with=LSTM)
    backend: str = setting("auto", "Backend that unrolls windows", choices=BACKENDS)
    keep: str = setting(
        "gates",
        "Values kept for the gradient; states: gradient checkpointing, less memory, more time",
        choices=("gates", "states"),
    )
    precision: str = setting(
        "float32", "Type of the matrix products", choices=("float32", "bfloat16")
    )
    optimizer: str = setting(
        "adamw", "Optimizer",
        choices=("sgd", "sgd_decay", "momentum", "rmsprop", "adam", "adamw"),
    )  # fmt: skip
    learning_rate: float = setting(5e-3, "Learning rate, the peak of its schedule.", least=0)
    schedule: str = setting(
        "cosine", "Schedule of the learning rate; cosine falls to 0 at the end",
        choices=("constant", "cosine", "epoch_decay"),
    )  # fmt: skip
    warmup: int = setting(
        100, "Windows of linear warm-up, with --schedule=cosine.", least=0,
        used_with={"schedule": ("cosine",)},
    )  # fmt: skip
    decay: float = setting(
        0.5, "Factor per epoch, with --schedule=epoch_decay.", least=0, used_with=EPOCH_DECAY
    )
    constant_epochs: int = setting(
        4, "Constant epochs at first, with --schedule=epoch_decay.", least=0, used_with=EPOCH_DECAY
    )
    weight_decay: float = setting(
        0.01, "Weight decay, with --optimizer=adamw or sgd_decay.", least=0,
        used_with={"optimizer": ("adamw", "sgd_decay")},
    )  # fmt: skip
    clip_norm: float = setting(1.0, "Largest norm of the gradient; 0: no clipping.", least=0)
    accumulate: int = setting(1, "Gradient accumulation: windows for one update.", least=1)
    reduction: str = setting(
        "mean", "Reduction of a window's losses; the sum is averaged over rows",
        choices=("mean", "sum_over_window"),
    )  # fmt: skip
    average_patience: int = setting(
        0, "NT-ASGD: validations without improvement before averaging begins; 0: never.", least=0
    )
    max_epochs: int = setting(18, "Epochs to train.", least=1)
    max_windows: int = setting(0, "Windows to train at most; 0: all epochs.", least=0)
    eval_every: int = setting(0, "Windows between validations; 0: once an epoch.", least=0)
    dynamic_rate: float = setting(
        0.0, "Learning rate of a second test by dynamic evaluation (Adam); 0: none.", least=0
    )
    windows_per_call: int = setting(50, "K: windows in one call of the compiled loop.", least=1)
    jit_compile: bool = setting(True, "Compile the loop with XLA.")
    sample_length: int = setting(
        600, "Tokens of generated text at the end.", least=1, most=1_000_000, report=True
    )
    temperature: float = setting(
        0.8, "Temperature of the sample: below 1 less random, above 1 more.", report=True
    )
    histogram_every: int = setting(
        1000, "Windows between histograms; 0: none.", least=0, report=True
    )

    def check_together(self) -> None:
        """Raises ValueError unless one source of data is named and the windows can be cut."""
        self._check_sources()
        tbptt.Truncation(
            self.window_length,
            stride=self.stride or None,
            burn_in=self.burn_in,
            jitter=self.jitter,
            cut=self.cut,
            drop_state=self.drop_state,
        )
        if -1 < self.core_dropout < 0:
            raise ValueError(f"core_dropout ({self.core_dropout}) must be -1, or a rate from 0 on.")
        if self.keep == "states" and (self.stride or self.jitter):
            raise ValueError(
                "--keep=states keeps no state in mid-window, where --stride and --jitter go on "
                "from. Use --keep=gates."
            )

    def _check_sources(self) -> None:
        texts = [self.train_text, self.valid_text, self.test_text]
        if any(texts) and not all(texts):
            raise ValueError("--train_text, --valid_text and --test_text go together.")
        sources = [name for name in ("documents", "prepared", "train_text") if getattr(self, name)]
        if self.corpus not in ("", Settings.corpus):
            sources.append("corpus")
        if len(sources) > 1:
            raise ValueError(
                f"--{' and --'.join(sources)} each name what to train on. Give one of them."
            )
        for name in ("valid", "test"):
            given = getattr(self, f"{name}_fraction") != getattr(Settings, f"{name}_fraction")
            instead = f"{name}_documents" if getattr(self, f"{name}_documents") else "train_text"
            if given and getattr(self, instead):
                raise ValueError(
                    f"--{name}_fraction has no effect with --{instead}. Leave one of them out."
                )
        if self.documents and self.shuffle != "none":
            raise ValueError(
                "--shuffle has no effect with --documents, which are in another order in every "
                "epoch anyway. Leave it out."
            )
        if self.prepared and self.vocabulary_size:
            preset = PRESETS.get(self.config, {}).get("vocabulary_size")
            if self.vocabulary_size != preset:
                raise ValueError(
                    "--vocabulary_size has no effect with --prepared, whose vocabulary is made by "
                    "tools.prepare. Leave it out."
                )
