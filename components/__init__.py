"""The TFX components of the graph, and what they run."""
