"""The container: what its files say, and the worker that runs as they say."""
