"""Checkpoints of runs: what is killed goes on where it was, and ends with the numbers of a run that was not."""
