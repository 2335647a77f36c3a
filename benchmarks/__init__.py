"""Benchmarks: ``python -m benchmarks.speed.NAME`` and ``python -m benchmarks.studies.NAME``."""
