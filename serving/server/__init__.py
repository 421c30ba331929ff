"""A local server with the gRPC and REST APIs of TF Serving, for models of this project."""
