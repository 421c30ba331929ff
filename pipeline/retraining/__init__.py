"""Scheduled retraining: which spans to train on, whether they drifted, the process that does the
work, and who is told of the outcome."""
