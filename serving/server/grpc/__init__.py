"""The gRPC API: services and tensors."""
