"""deploy/compose.yaml, as data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml


ROOT: Final = Path(__file__).parent.parent.parent
DEPLOY: Final = ROOT / "deploy"
DOCKERFILE: Final = DEPLOY / "Dockerfile"
COMPOSE: Final = DEPLOY / "compose.yaml"
CLUSTER: Final = DEPLOY / "cluster.yaml"
"""What is put on top of the compose file for three nodes."""
UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def composed() -> dict[str, Any]:
    """Return the file."""
    read = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(read, dict)
    return read


def services() -> dict[str, dict[str, Any]]:
    """Return the services by name."""
    return dict(composed()["services"])


def clustered() -> dict[str, Any]:
    """Return the file with the one for three nodes on top."""
    base, over = composed(), yaml.safe_load(CLUSTER.read_text())
    for service in over["services"].values():
        if (extended := service.pop("extends", None)) is not None:
            assert (DEPLOY / extended["file"]) == COMPOSE
            for name, value in base["services"][extended["service"]].items():
                service[name] = _merged(name, value, service.get(name))
    return dict(_merged("", base, over))


def _merged(name: str, base: Any, over: Any) -> Any:
    """Return what Docker's compose makes of two values of one name."""
    if over is None:
        return base
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: _merged(key, base.get(key), value) for key, value in over.items()}
    if name == "volumes":
        return [*{volume.split(":")[1]: volume for volume in [*base, *over]}.values()]
    if name == "secrets":
        return [*dict.fromkeys([*base, *over])]
    return over


def workers() -> dict[str, dict[str, Any]]:
    """Return the services that run our image."""
    built = {service["image"] for service in services().values() if "build" in service}
    return {name: service for name, service in services().items() if service["image"] in built}


def steps() -> list[dict[str, Any]]:
    """Return the services that end before a worker starts."""
    needed = services()["worker"]["depends_on"].items()
    return [services()[name] for name, each in needed if each["condition"] == "service_completed_successfully"]


def seconds(duration: str) -> float:
    """Return a duration such as 1m30s in seconds."""
    parts = re.findall(r"(\d+)(ms|[hms])", duration)
    assert "".join(number + unit for number, unit in parts) == duration, duration
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def environment(service: dict[str, Any], *, broker: int, secret: Path) -> dict[str, str]:
    """Return a worker's environment, with what compose's network gives it put where it is here."""
    given = {name: str(value) for name, value in service["environment"].items()}
    return given | {
        "BUS_URL": given["BUS_URL"].replace("@rabbitmq/", f"@127.0.0.1:{broker}/"),
        "BUS_PASSWORD_FILE": given["BUS_PASSWORD_FILE"].replace("/run/secrets/bus_password", str(secret)),
    }
