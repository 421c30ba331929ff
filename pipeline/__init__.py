"""Configuration, the graph, its runners, retraining, releases, runs, the command line."""
