"""The SavedModel: its contract (without TensorFlow), its graph, writing and loading it."""
