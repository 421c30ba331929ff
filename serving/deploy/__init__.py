"""Deploying the model to TF Serving: see docs/deployment.md."""
