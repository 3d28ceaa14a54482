"""Measures registry_serve beside an empty endpoint and beside other model servers. See docs/benchmarks.md."""
