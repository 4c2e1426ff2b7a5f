"""Truncated back-propagation through time, with the state in your hands."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbptt.checkpoint import load_parameters as load_parameters
    from tbptt.checkpoint import named_parameters as named_parameters
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
    from tbptt.losses import gaussian as gaussian
    from tbptt.losses import squared_error as squared_error
    from tbptt.models import EncoderDecoder as EncoderDecoder
    from tbptt.models import LanguageModel as LanguageModel
    from tbptt.models import SequenceModel as SequenceModel
    from tbptt.readouts.adaptive import AdaptiveSoftmax as AdaptiveSoftmax
    from tbptt.readouts.chunked import ChunkedSoftmax as ChunkedSoftmax
    from tbptt.readouts.sampled import SampledSoftmax as SampledSoftmax
    from tbptt.seeds import make_seed as make_seed
    from tbptt.seeds import split_seed as split_seed
    from tbptt.serving.generate import generate as generate
    from tbptt.streams.contiguous import ContiguousStream as ContiguousStream
    from tbptt.streams.corpus import Vocabulary as Vocabulary
    from tbptt.streams.documents import DocumentStream as DocumentStream
    from tbptt.streams.documents import encode_documents as encode_documents
    from tbptt.streams.feed import PrefetchFeed as PrefetchFeed
    from tbptt.streams.feed import ResidentFeed as ResidentFeed
    from tbptt.streams.feed import open_feed as open_feed
    from tbptt.streams.files import read_documents as read_documents
    from tbptt.streams.frames import FrameStream as FrameStream
    from tbptt.streams.pieces import Pieces as Pieces
    from tbptt.streams.series import Scale as Scale
    from tbptt.streams.series import Series as Series
    from tbptt.streams.series import SeriesStream as SeriesStream
    from tbptt.streams.tables import read_series as read_series
    from tbptt.streams.truncation import Truncation as Truncation
    from tbptt.summaries import SummaryWriter as SummaryWriter
    from tbptt.training.actions import Every as Every
    from tbptt.training.actions import KeepBest as KeepBest
    from tbptt.training.actions import Profile as Profile
    from tbptt.training.actions import Progress as Progress
    from tbptt.training.actions import Report as Report
    from tbptt.training.average import Average as Average
    from tbptt.training.evaluate import Evaluation as Evaluation
    from tbptt.training.evaluate import Evaluator as Evaluator
    from tbptt.training.loop import ContinuityError as ContinuityError
    from tbptt.training.loop import NonFiniteError as NonFiniteError
    from tbptt.training.loop import Position as Position
    from tbptt.training.loop import Trainer as Trainer
    from tbptt.training.loop import train as train
    from tbptt.training.loss_scale import LossScale as LossScale
    from tbptt.types import Cursor as Cursor
    from tbptt.types import Window as Window
    from tbptt.unroll import unroll as unroll

# Where each public name is defined. It is imported when it is first asked for, so that what needs
# no TensorFlow, as the files of `streams`, does not wait for it.
_HOMES = {
    "AdaptiveSoftmax": "readouts.adaptive",
    "Average": "training.average",
    "ChunkedSoftmax": "readouts.chunked",
    "ContiguousStream": "streams.contiguous",
    "ContinuityError": "training.loop",
    "Cursor": "types",
    "Dense": "layers.dense",
    "DocumentStream": "streams.documents",
    "Embedding": "layers.embedding",
    "EncoderDecoder": "models",
    "Evaluation": "training.evaluate",
    "Evaluator": "training.evaluate",
    "Every": "training.actions",
    "FrameStream": "streams.frames",
    "GRU": "layers.gru",
    "GRUState": "layers.gru",
    "KeepBest": "training.actions",
    "LSTM": "layers.lstm",
    "LSTMState": "layers.lstm",
    "LanguageModel": "models",
    "LossScale": "training.loss_scale",
    "NonFiniteError": "training.loop",
    "Pieces": "streams.pieces",
    "Position": "training.loop",
    "PrefetchFeed": "streams.feed",
    "Profile": "training.actions",
    "Progress": "training.actions",
    "Recurrent": "layers.recurrent",
    "Report": "training.actions",
    "ResidentFeed": "streams.feed",
    "SampledSoftmax": "readouts.sampled",
    "Scale": "streams.series",
    "SequenceModel": "models",
    "Series": "streams.series",
    "SeriesStream": "streams.series",
    "Stack": "layers.stack",
    "SummaryWriter": "summaries",
    "Trainer": "training.loop",
    "Truncation": "streams.truncation",
    "Vocabulary": "streams.corpus",
    "Window": "types",
    "absolute_error": "losses",
    "binary_cross_entropy": "losses",
    "cross_entropy": "losses",
    "dropout": "layers.dropout",
    "encode_documents": "streams.documents",
    "gaussian": "losses",
    "generate": "serving.generate",
    "load_parameters": "checkpoint",
    "make_seed": "seeds",
    "named_parameters": "checkpoint",
    "open_feed": "streams.feed",
    "read_documents": "streams.files",
    "read_series": "streams.tables",
    "save_parameters": "checkpoint",
    "split_seed": "seeds",
    "squared_error": "losses",
    "train": "training.loop",
    "unroll": "unroll",
}

__all__ = sorted(_HOMES)


class _Package(ModuleType):
    """The package itself, with its public names and subpackages as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f"tbptt.{_HOMES[name]}"), name)
            self.__dict__[name] = value
            return value
        if not name.startswith("_"):
            try:
                return import_module(f"tbptt.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"tbptt.{name}":
                    raise
        raise AttributeError(f"module 'tbptt' has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})

    @property
    def unroll(self) -> Any:
        """The function; the subpackage of this name holds it."""
        return import_module("tbptt.unroll").unroll

    @unroll.setter
    def unroll(self, subpackage: ModuleType) -> None:
        """Python would put the subpackage here when it is imported."""


sys.modules[__name__].__class__ = _Package
