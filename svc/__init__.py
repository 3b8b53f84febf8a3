"""The service: two processes, their protocol, the client and the command line."""
