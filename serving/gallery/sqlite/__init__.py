"""A gallery in an SQLite file, with vectors in sqlite-vec or faiss."""
