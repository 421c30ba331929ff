"""Typed configuration, the graph, its runners, run history, reports, the command line."""
