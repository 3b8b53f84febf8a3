"""What both servers share of gRPC: errors, interceptor, health, reflection, draining."""
