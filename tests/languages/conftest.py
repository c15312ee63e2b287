"""A stage on RabbitMQ, where other people's clients meet us."""

from __future__ import annotations

from tests.contract.conftest import rabbitmq


__all__ = ["rabbitmq"]
