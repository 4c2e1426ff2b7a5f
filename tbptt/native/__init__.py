"""Kernels in C++ for CPUs, called from inside the programs that XLA compiles.

`kernels.cc` has the recurrent loops of LSTM and GRU, a product and a sum. `build` compiles it once
with the machine's compiler, `library` loads it and registers the kernels with XLA, `calls`
calls them, `loops`, `products` and `reductions` are what the rest of the library uses, and `choice`
says where.
"""

from tbptt.native import loops as loops
from tbptt.native import products as products
from tbptt.native import reductions as reductions
from tbptt.native.choice import check_layer as check_layer
from tbptt.native.choice import left_out as left_out
from tbptt.native.choice import resolve as resolve
