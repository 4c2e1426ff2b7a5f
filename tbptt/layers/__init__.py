"""Layers, one a file: LSTM, GRU and others; `Recurrent` makes a layer of a cell of your own.

A cell of one's own needs no file here: `recurrent.Recurrent` makes a layer of any function
`(inputs_t, state) -> (output_t, state)`. A new built-in layer is a new file in this folder.
"""

from tbptt.layers import running_mean as running_mean  # `rebuild` makes one by its name
