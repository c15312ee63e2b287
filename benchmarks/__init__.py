"""This project against its peers, in one run: see `python -m benchmarks --help`."""
