"""Fronts: thin layers that read a request of one protocol, call the data plane, and write its answer."""
