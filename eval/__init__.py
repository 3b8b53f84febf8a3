"""Benchmarks, the synthetic world and its trainer, metrics and reports."""
