"""Training of the Siamese network: recipe, data, model, the fit, calibration; `run_fn` is what
TFX calls."""
