"""The exported model, its clients, the gallery of references, and a local server."""
