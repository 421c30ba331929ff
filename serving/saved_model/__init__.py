"""The SavedModel that training writes and servers load, and all that both must agree on.

`contract` and `versions` need no TensorFlow. `preprocessing` is the part of the graph that turns
an encoded image into a drawing, `export` writes the model with what belongs to it (`impostors`:
figures for the thresholds of galleries), and `loader` loads it as TF Serving does.
"""
