"""Readouts: from hidden states to the next token's distribution, one kind of softmax a file."""
