"""Cells over a whole window, with gradients of their own.

Differentiated automatically, a loop adds up the gradient of the recurrent weights at every step.
Here the backward loop computes only what the step before needs and keeps what reached the
products; the gradient of the weights is one product over all T * B rows afterwards: as many
operations, but large ones. `lstm.run` and `gru.run` have their gradients written out; `generic.run`
does the same for any cell that says which of its products have weights.

Reference: Appleyard, Kocisky & Blunsom (2016), Optimizing performance of recurrent neural
  networks on GPUs, section 3.
"""

from tbptt.unroll.fused import generic as generic
from tbptt.unroll.fused import gru as gru
from tbptt.unroll.fused import lstm as lstm
