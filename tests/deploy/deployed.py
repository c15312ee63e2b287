"""A broker that is started with the settings and the user of deploy/."""

from __future__ import annotations

import shutil
from urllib.parse import quote

from tests.broker.node import Node

from .compose import DEPLOY, services


PASSWORD = "a secret of the tests"
USER = services()["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_USER"]


class Deployed(Node):
    """A broker with the settings and the user of deploy/."""

    def __init__(self) -> None:
        super().__init__()
        shutil.copy(DEPLOY / "advanced.config", self.folder)

    def login(self) -> str:
        """Return its URL, with the user of deploy/."""
        return f"amqp://{USER}:{quote(PASSWORD)}@127.0.0.1:{self.port}/"

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"RABBITMQ_DEFAULT_USER": USER, "RABBITMQ_DEFAULT_PASS": PASSWORD}
