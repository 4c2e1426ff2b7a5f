"""The `fused` backend: runs cells over a whole window with gradients written for speed.

Differentiated automatically, a loop adds up the gradient of the recurrent weights at every step.
Here the backward loop computes only the gradients of the state and stores those of the products;
the gradient of the weights is one large product over all T * B rows afterwards, instead of T small
ones. `lstm.run` and `gru.run` have their gradients written out; `generic.run` does the same for any
cell that names its products with weights.

Reference: Appleyard, Kocisky & Blunsom (2016), Optimizing performance of recurrent neural
  networks on GPUs, section 3.
"""

from tbptt.unroll.fused import generic as generic
from tbptt.unroll.fused import gru as gru
from tbptt.unroll.fused import lstm as lstm
