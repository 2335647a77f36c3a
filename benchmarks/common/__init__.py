"""What several benchmarks need: cases, networks, pages."""
