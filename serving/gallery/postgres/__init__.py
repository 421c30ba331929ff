"""A gallery in PostgreSQL with pgvector, for several machines."""
