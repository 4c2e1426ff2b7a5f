"""From hidden states to the distribution of the next token, one readout a file."""
