"""The pipeline: typed configuration, the graph, its runners, run history, reports and the command line."""
