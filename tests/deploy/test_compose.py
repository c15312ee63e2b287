"""The compose file: its services fit together, and fit what the worker and the broker need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from bus.settings import Settings, read, unknown
from bus.transport.rabbitmq.address import addresses

from .compose import COMPOSE, DEPLOY, DOCKERFILE, ROOT, composed, seconds, services, workers
from .dockerfile import parse


CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def test_docker_compose_takes_the_file_where_it_is_there(tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load(COMPOSE.read_text()), dict)
    asked = ["docker", "compose", "version"]
    if shutil.which("docker") and subprocess.run(asked, capture_output=True, check=False).returncode == 0:
        checked = ["docker", "compose", "-f", str(COMPOSE), "config", "--quiet"]
        done = subprocess.run(checked, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_what_a_service_names_is_declared() -> None:
    file = composed()
    for name, service in services().items():
        for other, needed in service.get("depends_on", {}).items():
            assert needed["condition"] in CONDITIONS
            assert other in services()
            if needed["condition"] == "service_healthy":
                assert services()[other]["healthcheck"]["test"][0] == "CMD", name
            if needed["condition"] == "service_completed_successfully":
                assert services()[other]["restart"].partition(":")[0] in ("no", "on-failure")
        assert set(service.get("secrets", [])) <= set(file["secrets"])
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        files = {volume for volume in volumes if volume.startswith(".")}
        assert volumes - files <= set(file["volumes"])
        assert all((DEPLOY / each).is_file() for each in files), files


def test_the_build_finds_its_files_and_git_takes_no_secret() -> None:
    file = composed()
    for service in workers().values():
        if "build" in service:
            context = (DEPLOY / service["build"]["context"]).resolve()
            assert context == ROOT
            assert context / service["build"]["dockerfile"] == DOCKERFILE
    for each in file["secrets"].values():
        ignored = subprocess.run(["git", "check-ignore", "-q", DEPLOY / each["file"]], cwd=ROOT, check=False)
        assert ignored.returncode == 0, f"git would take {each['file']}"


def test_images_of_others_are_pinned_to_a_version() -> None:
    ours = {service["image"] for service in workers().values()}
    others = [service["image"] for service in services().values() if service["image"] not in ours]
    stages = parse(DOCKERFILE.read_text())
    assert [image for image in [*others, *(stage.base for stage in stages)] if not re.search(r":\d", image)] == []


def test_a_worker_is_given_settings_that_exist_and_a_password_that_no_file_shows() -> None:
    for service in workers().values():
        given = {name: str(value) for name, value in service["environment"].items()}
        assert unknown(given) == []
        settings = read(given)
        assert str(settings.password_file) in {f"/run/secrets/{name}" for name in service["secrets"]}
        [address] = addresses(Settings(url=settings.url))
        assert address.host in service["depends_on"]
        assert address.login == services()[address.host]["environment"]["RABBITMQ_DEFAULT_USER"]
        assert ":" not in settings.url.partition("://")[2], "a password in the URL"


def test_two_replicas_end_in_their_own_time_and_are_started_again() -> None:
    worker = services()["worker"]
    settings = read({name: str(value) for name, value in worker["environment"].items()})
    assert worker["deploy"]["replicas"] == 2
    assert "container_name" not in worker, "two cannot have one name"
    assert not any("published" in str(port) or ":" in str(port) for port in worker.get("ports", []))
    # the grace, a second for threads, and the goodbye to the broker
    assert seconds(worker["stop_grace_period"]) >= settings.grace + 10
    assert worker["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", sorted(workers()))
def test_a_worker_has_no_more_rights_than_it_needs(name: str) -> None:
    service = workers()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "user", "network_mode"} & set(service)


def test_the_endpoint_that_is_asked_for_health_is_served() -> None:
    port = services()["worker"]["environment"]["BUS_HTTP"].rpartition(":")[2]
    image = parse(DOCKERFILE.read_text())[-1]
    assert image.last("EXPOSE").text == port
    assert image.last("HEALTHCHECK").words == ["python", "healthy.py", "/livez"]
    assert services()["worker"]["healthcheck"]["test"] == ["CMD", "python", "healthy.py", "/readyz"]


def test_the_broker_is_started_with_the_password_of_the_file(tmp_path: Path) -> None:
    broker = services()["rabbitmq"]
    (tmp_path / "bus_password").write_text("a $ecret\n")
    program = tmp_path / "docker-entrypoint.sh"
    program.write_text('#!/bin/sh\necho "$RABBITMQ_DEFAULT_PASS|$*"\n')
    program.chmod(0o755)
    # compose takes $$ for a $ of the command's own
    entrypoint = [part.replace("$$", "$").replace("/run/secrets", str(tmp_path)) for part in broker["entrypoint"]]
    done = subprocess.run(
        [*entrypoint, *broker["command"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "a $ecret|rabbitmq-server\n"
