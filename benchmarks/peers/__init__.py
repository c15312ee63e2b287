"""One module per peer, with `SETTINGS` and the coroutines `publish`, `consume` and `loop`."""
