"""Models made of the layers: what a trainer, an evaluation and a sampler call."""

from tbptt.models.encoder_decoder import EncoderDecoder as EncoderDecoder
from tbptt.models.language_model import LanguageModel as LanguageModel
from tbptt.models.sequence_model import SequenceModel as SequenceModel
