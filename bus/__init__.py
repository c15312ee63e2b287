"""Tidegate: an event-driven microservice runtime."""

__version__ = "0.1.0"
