"""The pushed version that is served: promotion, rollback, history, and removal of what is old."""
