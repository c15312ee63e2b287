"""Hostile messages: strategies, and the run of thousands of them through a real broker."""
