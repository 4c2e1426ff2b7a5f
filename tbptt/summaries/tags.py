"""The tags of the metrics in TensorBoard; the step of every one is in windows."""

LOSS_TRAIN = "loss/train"
LOSS_VALID = "loss/valid"
RESULT_VALID = "result/valid"
RESULT_TEST = "result/test"
GRAD_NORM_MEAN = "optim/grad_norm"
GRAD_NORM_MAX = "optim/grad_norm_max"
LEARNING_RATE = "optim/learning_rate"
WINDOWS_SKIPPED = "optim/windows_skipped"
HIDDEN_RMS = "state/hidden_rms"
TOKENS_PER_SECOND = "speed/tokens_per_second"
EPOCH = "speed/epoch"
SETTINGS = "settings"
SAMPLE = "sample"
FORECAST = "forecast"
PARAMETERS = "parameters"
STATE = "state"


def train(name: str) -> str:
    """Returns the tag of a metric in training: `loss/train`, `accuracy/train`."""
    return f"{name}/train"


def valid(name: str) -> str:
    """Returns the tag of a metric in validation: `loss/valid`, `accuracy/valid`."""
    return f"{name}/valid"
