"""What people read of runs: a report of each, and an index of all."""
