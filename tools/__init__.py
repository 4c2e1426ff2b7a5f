"""Command-line tools, one a file; those in `bench/` measure."""
