"""Truncated back-propagation through time in TensorFlow, with an explicit recurrent state.

For a script of one's own: `import tbptt` gives layers, models, streams, `Trainer`, `train` and
`Evaluator`; `tbptt.experiment` adds flags, a run's folder, checkpoints and results around them. For
a loop of one's own: `Trainer`, `open_feed`, and `tbptt.checkpoint.snapshot` to save and resume.
"""

from tbptt import quiet as quiet  # isort: skip  (first: it imports TensorFlow without its messages)

from tbptt.checkpoint import load_parameters as load_parameters
from tbptt.checkpoint import save_parameters as save_parameters
from tbptt.layers.dense import Dense as Dense
from tbptt.layers.dropout import dropout as dropout
from tbptt.layers.embedding import Embedding as Embedding
from tbptt.layers.gru import GRU as GRU
from tbptt.layers.gru import GRUState as GRUState
from tbptt.layers.lstm import LSTM as LSTM
from tbptt.layers.lstm import LSTMState as LSTMState
from tbptt.layers.recurrent import Recurrent as Recurrent
from tbptt.layers.stack import Stack as Stack
from tbptt.losses import absolute_error as absolute_error
from tbptt.losses import binary_cross_entropy as binary_cross_entropy
from tbptt.losses import cross_entropy as cross_entropy
from tbptt.losses import gaussian_nll as gaussian_nll
from tbptt.losses import squared_error as squared_error
from tbptt.models import EncoderDecoder as EncoderDecoder
from tbptt.models import LanguageModel as LanguageModel
from tbptt.models import SequenceModel as SequenceModel
from tbptt.readouts.adaptive import AdaptiveSoftmax as AdaptiveSoftmax
from tbptt.readouts.chunked import ChunkedSoftmax as ChunkedSoftmax
from tbptt.readouts.full import FullSoftmax as FullSoftmax
from tbptt.readouts.sampled import SampledSoftmax as SampledSoftmax
from tbptt.seeds import make_seed as make_seed
from tbptt.seeds import split_seed as split_seed
from tbptt.streams.contiguous import ContiguousStream as ContiguousStream
from tbptt.streams.corpus import Vocabulary as Vocabulary
from tbptt.streams.documents import DocumentStream as DocumentStream
from tbptt.streams.documents import encode_documents as encode_documents
from tbptt.streams.feed import PrefetchFeed as PrefetchFeed
from tbptt.streams.feed import ResidentFeed as ResidentFeed
from tbptt.streams.feed import open_feed as open_feed
from tbptt.streams.files import read_documents as read_documents
from tbptt.streams.frames import FrameStream as FrameStream
from tbptt.streams.segments import Segments as Segments
from tbptt.streams.series import Series as Series
from tbptt.streams.series import SeriesStream as SeriesStream
from tbptt.streams.series import Standardizer as Standardizer
from tbptt.streams.tables import read_series as read_series
from tbptt.streams.truncation import Truncation as Truncation
from tbptt.summaries.writer import SummaryWriter as SummaryWriter
from tbptt.training.actions import Every as Every
from tbptt.training.actions import EveryCall as EveryCall
from tbptt.training.actions import Profile as Profile
from tbptt.training.actions import Progress as Progress
from tbptt.training.actions import Report as Report
from tbptt.training.average import Average as Average
from tbptt.training.best import KeepBest as KeepBest
from tbptt.training.evaluate import Evaluation as Evaluation
from tbptt.training.evaluate import Evaluator as Evaluator
from tbptt.training.loop import NonFiniteError as NonFiniteError
from tbptt.training.loop import RunState as RunState
from tbptt.training.loop import train as train
from tbptt.training.loss_scale import LossScale as LossScale
from tbptt.training.trainer import Trainer as Trainer
from tbptt.training.window import ContinuityError as ContinuityError
from tbptt.types import Controls as Controls
from tbptt.types import Cursor as Cursor
from tbptt.types import Window as Window
from tbptt.types import WindowLoss as WindowLoss
from tbptt.unroll import unroll as unroll
from tbptt.variables import named_parameters as named_parameters

__all__ = [
    "AdaptiveSoftmax",
    "Average",
    "ChunkedSoftmax",
    "ContiguousStream",
    "ContinuityError",
    "Controls",
    "Cursor",
    "Dense",
    "DocumentStream",
    "Embedding",
    "EncoderDecoder",
    "Evaluation",
    "Evaluator",
    "Every",
    "EveryCall",
    "FrameStream",
    "FullSoftmax",
    "GRU",
    "GRUState",
    "KeepBest",
    "LSTM",
    "LSTMState",
    "LanguageModel",
    "LossScale",
    "NonFiniteError",
    "PrefetchFeed",
    "Profile",
    "Progress",
    "Recurrent",
    "Report",
    "ResidentFeed",
    "RunState",
    "SampledSoftmax",
    "Segments",
    "SequenceModel",
    "Series",
    "SeriesStream",
    "Stack",
    "Standardizer",
    "SummaryWriter",
    "Trainer",
    "Truncation",
    "Vocabulary",
    "Window",
    "WindowLoss",
    "absolute_error",
    "binary_cross_entropy",
    "cross_entropy",
    "dropout",
    "encode_documents",
    "gaussian_nll",
    "load_parameters",
    "make_seed",
    "named_parameters",
    "open_feed",
    "read_documents",
    "read_series",
    "save_parameters",
    "split_seed",
    "squared_error",
    "train",
    "unroll",
]
