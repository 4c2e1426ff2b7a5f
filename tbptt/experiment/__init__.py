"""What every experiment needs: flags, the folder of a run, fit, seeds."""
