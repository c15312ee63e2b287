"""The shop's events: immutable, typed facts, one module per service that publishes them."""
