"""Parameters and the mathematics of one layer, one layer a file."""
