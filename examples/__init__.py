"""One runnable file for each promise: `python examples/retry.py`. Each is a test too, in `tests/test_examples.py`."""
