"""Optimizers, gradient clipping and schedules, as chains of pure functions (as in Optax).

Averaging of parameters (ASGD, NT-ASGD) is in `tbptt.training.average`.
"""

from tbptt.optimizers.accumulation import accumulate as accumulate
from tbptt.optimizers.adam import adam as adam
from tbptt.optimizers.adam import adamw as adamw
from tbptt.optimizers.adam import add_weight_decay as add_weight_decay
from tbptt.optimizers.clipping import clip_by_global_norm as clip_by_global_norm
from tbptt.optimizers.clipping import clip_by_value as clip_by_value
from tbptt.optimizers.rmsprop import rmsprop as rmsprop
from tbptt.optimizers.schedules import Schedule as Schedule
from tbptt.optimizers.schedules import constant as constant
from tbptt.optimizers.schedules import epoch_decay as epoch_decay
from tbptt.optimizers.schedules import warmup_cosine as warmup_cosine
from tbptt.optimizers.sgd import sgd as sgd
from tbptt.optimizers.transform import GradientTransform as GradientTransform
from tbptt.optimizers.transform import chain as chain
