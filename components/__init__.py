"""TFX components and what they run."""
