"""Models: layers, a readout and a loss together, for trainer, evaluator and sampler.

A metric of one's own is a function `(outputs, targets) -> [T, B]` in `metrics=` of `SequenceModel`
or `EncoderDecoder`, or an entry of `WindowLoss.metrics` that a model's `loss` returns.
"""

from tbptt.models.encoder_decoder import EncoderDecoder as EncoderDecoder
from tbptt.models.language_model import LanguageModel as LanguageModel
from tbptt.models.sequence_model import SequenceModel as SequenceModel
