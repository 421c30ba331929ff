"""A page to try a served model on: draw, upload, enrol, compare. Talks to it as any client does."""

import os

# Gradio reads it when it is imported, and would otherwise report to its makers.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
