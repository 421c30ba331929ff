"""Judging a model: what TFX's Evaluator measures and blesses by, and the same trials without TFX
(`offline`), beside baselines."""
