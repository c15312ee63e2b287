"""Chaos on a real broker: processes that keep ledgers, faults by seed, and a reconciliation at the end."""
