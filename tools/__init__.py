"""Commands that a user calls, one a file; those in `bench/` measure."""
