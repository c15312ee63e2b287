"""A cluster under load, fault after fault, with a ledger: `python -m benchmarks.cluster`."""
