"""Deploying the model to TF Serving: see docs/serving.md."""
