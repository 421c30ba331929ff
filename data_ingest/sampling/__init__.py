"""Pairs and one-shot trials as a pure function of a seed and an index of images."""
