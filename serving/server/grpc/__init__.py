"""The gRPC API: services, tensors, the thread they run in."""
