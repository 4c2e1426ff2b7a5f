"""Learns a file byte by byte: `python script.py --text=FILE --hidden=256 --seeds=2`."""

import dataclasses

import numpy as np

import tbptt
from tbptt import experiment, optimizers


@dataclasses.dataclass(frozen=True)
class Settings(experiment.Settings):
    text: str = experiment.setting("", "The file to learn; empty: this script.")
    rows: int = experiment.setting(8, "B: rows, stretches of the text read side by side.", least=1)
    window_length: int = experiment.setting(32, "T: steps in a window.", least=1)
    hidden: int = experiment.setting(128, "Units of the LSTM.", least=1)
    learning_rate: float = experiment.setting(3e-3, "Learning rate of Adam.", least=0)
    windows: int = experiment.setting(500, "Windows to train.", least=1)
    jit_compile: bool = experiment.setting(True, "Compile the training loop with XLA.")


def main(settings: Settings, options: experiment.Options) -> experiment.Result:
    replicas = experiment.replicas_of(options, settings.rows)
    sizes = dict(rows=settings.rows, window_length=settings.window_length, vocabulary_size=256)
    with experiment.usage_errors():  # ends the script with one line and no traceback
        text = np.fromfile(settings.text or __file__, np.uint8)
        parts = np.split(text, [len(text) * 8 // 10, len(text) * 9 // 10])
        streams = [tbptt.ContiguousStream(part, tail="pad", **sizes) for part in parts]
    seeds = tbptt.split_seed(tbptt.make_seed(settings.seed), 2)
    optimizer = optimizers.adam(settings.learning_rate)
    with replicas.scope():
        core = tbptt.LSTM(64, settings.hidden, seed=seeds[0])
        model = tbptt.LanguageModel(256, 64, core, seed=seeds[1])
        how = dict(seed=settings.seed, replicas=replicas, jit_compile=settings.jit_compile)
        trainer = tbptt.Trainer(model, optimizer, **how)
    return experiment.train_and_test(settings, options, trainer, *streams, windows=settings.windows)


if __name__ == "__main__":
    experiment.launch(main, Settings)
