"""Runs a cell over the T steps of a window: `api.unroll` with several backends.

`reference` defines the result, `scan` is one `tf.while_loop`, `fused` and `cudnn` have gradients
of their own. A row's reset inside a window is done here, by every backend but `cudnn`. `recompute`
is gradient checkpointing. A new cell needs no backend of its own: see `layers.recurrent`.
"""

from tbptt.unroll.api import BACKENDS as BACKENDS
from tbptt.unroll.api import KEEP as KEEP
from tbptt.unroll.api import Cell as Cell
from tbptt.unroll.api import check_backend as check_backend
from tbptt.unroll.api import check_window as check_window
from tbptt.unroll.api import unroll as unroll
