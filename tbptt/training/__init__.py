"""Training: windows to updates, the loop over them, callbacks, metrics and evaluation.

`window` cuts the gradient (`start_state`) and makes one update; `programs` compiles K windows with
XLA and sums gradients over replicas (all-reduce); `trainer` holds parameters, optimizer state and
step; `loop.train` is the outer loop, and `loop.RunState` holds the recurrent state between calls;
`actions` has the callbacks, `evaluate` the evaluation, `average` NT-ASGD averaging.
"""
