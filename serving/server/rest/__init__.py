"""The REST API: paths, JSON in and out, limits on requests."""
