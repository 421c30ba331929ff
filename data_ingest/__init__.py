"""Where images come from, and how pairs and one-shot trials are sampled from them."""
