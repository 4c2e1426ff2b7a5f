"""The settings of every experiment with values to try, and which of them do not go together.

`tests/experiments/test_pairwise.py` makes combinations of these tables in which every two values
of two settings meet at least once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from allpairspy import AllPairs

from experiments import forecast, language_model, memory, music, speech

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Values that do not go together.

    Attributes:
      names: the settings it looks at.
      broken: called with their values; true where the experiment must refuse them.
      example: values that break it, beside a table's simplest ones; empty: see `effect_rules`.
      message: what the refusal says, a regular expression.
    """

    names: tuple[str, ...]
    broken: Callable[..., bool]
    example: Values
    message: str


def effect_rules(settings: type) -> list[Rule]:
    """The rules that the settings declare themselves: a value must have an effect."""
    fields = {field.name: field for field in dataclasses.fields(settings)}
    rules = []
    for field in fields.values():
        used_with = field.metadata.get("used_with")
        if not used_with:
            continue
        others = [(fields[name], values) for name, values in used_with.items()]

        def broken(value: Any, *of_others: Any, field=field, others=others) -> bool:
            return value != field.default and not any(
                given != other.default if values is None else given in values
                for given, (other, values) in zip(of_others, others, strict=True)
            )

        names = (field.name, *(other.name for other, _ in others))
        rules.append(Rule(names, broken, {}, f"--{field.name} has no effect"))
    return rules


@dataclasses.dataclass(frozen=True)
class Table:
    """What is tried of one experiment.

    Attributes:
      module: the experiment.
      values: two values or more for every setting, the first the simplest one.
      left_out: settings without values of their own, and why.
      rules: see `Rule`; beside those that the settings declare.
      preprocessing: the names of what a run keeps beside its model; None: it keeps no model.
      expand: makes settings of values, some of which stand for several.
    """

    module: Any
    values: dict[str, list[Any]]
    left_out: dict[str, str]
    rules: list[Rule]
    preprocessing: list[str] | None
    expand: Callable[[Values], Values] = lambda values: values

    @functools.cached_property
    def combinations(self) -> list[Values]:
        """Settings in which every two values that go together meet."""
        names = list(self.values)
        rules = [*self.rules, *effect_rules(self.module.Settings)]

        def allowed(row: list[Any]) -> bool:
            made = self.expand(dict(zip(names, row, strict=False)))
            return not any(
                rule.broken(*(made[name] for name in rule.names))
                for rule in rules
                if all(name in made for name in rule.names)
            )

        pairs = AllPairs(list(self.values.values()), filter_func=allowed)
        return [self.expand(dict(zip(names, row, strict=True))) for row in pairs]

    @property
    def simplest(self) -> Values:
        """The first value of everything."""
        return {name: values[0] for name, values in self.values.items()}


NOT_HERE = {
    "config": "presets are run in test_language_model.py",
    "jit_compile": "compiled and not are compared in tests/unroll and tests/training",
    "max_windows": "two windows are trained here",
    "windows_per_call": "law 6, in tests/training",
}
SEQUENCE_LEFT_OUT = NOT_HERE | {"max_epochs": "it ends the run, as max_windows does"}

MODEL: dict[str, list[Any]] = dict(
    seed=[0, 1], rows=[2, 4], cell=["lstm", "gru"], backend=["fused", "scan"],
    hidden=[4, 5], layers=[1, 2], dropout=[0.0, 0.3], input_dropout=[0.0, 0.3],
    recurrent_dropout=[0.0, 0.3], learning_rate=[3e-3, 1e-2], weight_decay=[0.0, 0.01],
    clip_norm=[1.0, 0.0],
)  # fmt: skip


def together(*apart: str) -> dict[str, list[Any]]:
    """The settings in `MODEL` as one of two values, all first or all second; some by themselves.

    How they go together is seen in the table of speech, which has each by itself: all experiments
    on features build their cores and optimizers by the same functions.
    """
    names = set(MODEL) - set(apart)
    models = [{name: MODEL[name][k] for name in MODEL if name in names} for k in (0, 1)]
    return {"model": models} | {name: MODEL[name] for name in apart}


def with_model(values: Values) -> Values:
    """`model` as the settings that it stands for."""
    return {name: value for name, value in values.items() if name != "model"} | values.get(
        "model", {}
    )


WINDOWS: dict[str, list[Any]] = dict(
    window_length=[4, 3], stride=[0, 2], burn_in=[0, 1], eval_every=[0, 1]
)
BURN_IN = Rule(
    ("window_length", "stride", "burn_in"),
    lambda length, stride, burn_in: burn_in > length - (stride or length),
    dict(stride=0, burn_in=1),
    r"burn_in \(1\)",
)


def language_source(values: Values) -> Values:
    """`source` as the settings that name a text; a prepared corpus has its tokens' kind."""
    made = dict(values)
    source = made.pop("source", None)
    if source is None or "tokens" not in made:
        return values
    prepared = f"{made['tokens']}-{'lines' if source == 'prepared documents' else 'text'}"
    names = ("corpus", "train_text", "valid_text", "test_text", "documents", "prepared")
    given = {
        "text": dict(corpus="text.txt"),
        "documents": dict(documents="documents.jsonl"),
        "three texts": dict.fromkeys(["train_text", "valid_text", "test_text"], "text.txt"),
    }.get(source, dict(prepared=prepared))
    return made | dict.fromkeys(names, "") | given


LANGUAGE_MODEL = Table(
    language_model,
    dict(
        source=["text", "documents", "prepared text", "prepared documents", "three texts"],
        tokens=["characters", "bytes", "words"], vocabulary_size=[0, 9],
        valid_documents=[0, 2], test_documents=[0, 2],
        valid_fraction=[0.04, 0.1], test_fraction=[0.1, 0.2],
        rows=[2, 4], window_length=[4, 3], shuffle=["none", "offset", "rotate"],
        stride=[0, 2], burn_in=[0, 1], jitter=[0.0, 1.0], cut=[0.0, 0.3], drop_state=[0.0, 0.5],
        valid_rows=[2, 1], cell=["lstm", "gru"], embedding=[4, 3], hidden=[4, 5], layers=[1, 2],
        top_hidden=[0, 4], core_dropout=[-1.0, 0.0, 0.3], tied=[False, True],
        readout=["full", "chunked", "adaptive", "sampled"], readout_chunk=[2048, 3],
        cutoffs=["", "2,5"], samples=[1000, 4], learn_initial_state=[False, True],
        dropout=[0.0, 0.3], dropout_per=["step", "window"], recurrent_dropout=[0.0, 0.3],
        weight_dropout=[0.0, 0.3], zoneout=[0.0, 0.2], layer_norm=[False, True],
        embedding_dropout=[0.0, 0.3], activation_penalty=[0.0, 2.0],
        slowness_penalty=[0.0, 1.0], init_scale=[0.0, 0.1], forget_bias=[1.0, 0.0],
        backend=["auto", "fused", "scan"], keep=["gates", "states"],
        precision=["float32", "bfloat16"],
        optimizer=["adamw", "sgd", "sgd_decay", "momentum", "rmsprop", "adam"],
        learning_rate=[5e-3, 1e-2], schedule=["cosine", "constant", "epoch_decay"],
        warmup=[100, 1], decay=[0.5, 0.9], constant_epochs=[4, 0], weight_decay=[0.01, 0.1],
        clip_norm=[1.0, 0.0, 0.01], accumulate=[1, 2], reduction=["mean", "sum_over_window"],
        average_patience=[0, 1], eval_every=[1, 2], dynamic_rate=[0.0, 1e-3],
        sample_length=[5, 1], temperature=[0.8, 2.0], histogram_every=[0, 1], seed=[0, 1],
    ),
    NOT_HERE | {
        "corpus": "source", "train_text": "source", "valid_text": "source", "test_text": "source",
        "documents": "source", "prepared": "source", "max_epochs": "max_windows ends the run",
    },
    [
        BURN_IN,
        *(
            Rule(
                (f"{part}_fraction", f"{part}_documents", "train_text"),
                lambda given, documents, text, default=default: bool(
                    given != default and (documents or text)
                ),
                {"source": "documents", f"{part}_documents": 2, f"{part}_fraction": 0.15},
                f"--{part}_fraction has no effect with --{part}_documents",
            )
            for part, default in (("valid", 0.04), ("test", 0.1))
        ),
        *(
            Rule(
                ("prepared", f"{part}_documents"),
                lambda prepared, count: prepared.endswith("text") and count > 0,
                {"source": "prepared text", f"{part}_documents": 2}, "is one document",
            )
            for part in ("valid", "test")
        ),
        Rule(
            ("shuffle", "documents"),
            lambda shuffle, documents: shuffle != "none" and documents != "",
            dict(source="documents", shuffle="rotate"), "--shuffle has no effect",
        ),
        Rule(
            ("shuffle", "prepared"),
            lambda shuffle, prepared: shuffle != "none" and prepared.endswith("lines"),
            dict(source="prepared documents", shuffle="rotate"), "--shuffle has no effect",
        ),
        Rule(
            ("vocabulary_size", "prepared"),
            lambda size, prepared: size > 0 and prepared != "",
            dict(source="prepared text", tokens="words", vocabulary_size=9),
            "--vocabulary_size has no effect",
        ),
        Rule(
            ("tied", "embedding", "hidden", "top_hidden"),
            lambda tied, embedding, hidden, top: tied and embedding != (top or hidden),
            dict(tied=True, embedding=3, hidden=4), "Tied weights need embedding_size",
        ),
        Rule(
            ("tied", "readout"),
            lambda tied, readout: tied and readout in ("adaptive", "sampled"),
            dict(tied=True, readout="adaptive", tokens="words"), "cannot be --tied",
        ),
        Rule(
            ("tokens", "readout"),
            lambda tokens, readout: tokens != "words" and readout in ("adaptive", "sampled"),
            dict(tokens="bytes", readout="adaptive"), "needs ids sorted by frequency",
        ),
        Rule(
            ("keep", "stride", "jitter"),
            lambda keep, stride, jitter: keep == "states" and bool(stride or jitter),
            dict(keep="states", stride=2), "keep=states",
        ),
        Rule(
            ("stride", "jitter"),
            lambda stride, jitter: bool(stride and jitter),
            dict(stride=2, jitter=1.0), "both say how far",
        ),
    ],
    ["vocabulary"],
    language_source,
)  # fmt: skip

MUSIC = Table(
    music,
    together("cell", "backend") | WINDOWS | dict(data=["music.npz"], keys=[20]),
    SEQUENCE_LEFT_OUT,
    [BURN_IN],
    [],
    with_model,
)
SPEECH = Table(
    speech,
    MODEL | WINDOWS | dict(
        data=["speech.npz"], deltas=[False, True], valid_fraction=[0.2, 0.0],
        pooling=[True, False], score=["every", "last"],
    ),
    SEQUENCE_LEFT_OUT,
    [BURN_IN],
    ["labels", "standardizer"],
)  # fmt: skip
FORECAST = Table(
    forecast,
    together("cell", "layers", "backend") | WINDOWS | dict(
        data=["table.csv"], time_column=["", "day"],
        columns=["", "rain,wind"], targets=["", "wind"],
        horizon=[1, 3], path=[False, True], teacher_forcing=[0.0, 0.5, 1.0],
        train=[0, 14], valid=[0, 6], test=[0, 6],
    ),
    SEQUENCE_LEFT_OUT,
    [BURN_IN],
    ["columns", "horizon", "masked", "path", "standardizer", "targets"],
    with_model,
)  # fmt: skip
MEMORY = Table(
    memory,
    together("cell", "backend") | dict(
        task=["copy", "adding"], shortest=[3, 4], longest=[4, 6], cuts=["3,4/2", "3f"],
        steps=[40, 30],
    ),
    NOT_HERE,
    [],
    None,
    with_model,
)  # fmt: skip
TABLES = {
    table.module.__name__.rpartition(".")[2]: table
    for table in (LANGUAGE_MODEL, MUSIC, SPEECH, FORECAST, MEMORY)
}
