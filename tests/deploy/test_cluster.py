"""The files for three nodes: they fit each other, the compose file, and what the tests start their nodes with."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bus.settings import Settings
from bus.transport.rabbitmq.address import addresses
from tests.broker.cluster import NODES

from .compose import CLUSTER, COMPOSE, DEPLOY, ROOT, clustered


CONF = (DEPLOY / "cluster.conf").read_text()


def nodes() -> dict[str, dict[str, Any]]:
    """Return the services that are nodes."""
    return {name: service for name, service in clustered()["services"].items() if name.startswith("rabbitmq")}


def test_docker_compose_takes_the_files_where_it_is_there(tmp_path: Path) -> None:
    asked = ["docker", "compose", "version"]
    if shutil.which("docker") and subprocess.run(asked, capture_output=True, check=False).returncode == 0:
        checked = ["docker", "compose", "-f", str(COMPOSE), "-f", str(CLUSTER), "config", "--quiet"]
        done = subprocess.run(checked, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_nodes_look_for_each_other_by_the_names_that_they_have() -> None:
    named = re.findall(r"^cluster_formation\.classic_config\.nodes\.\d = (.*)$", CONF, re.MULTILINE)
    assert named == [f"rabbit@{service['hostname']}" for service in nodes().values()]
    assert [service["hostname"] for service in nodes().values()] == list(nodes())
    assert tuple(named) == NODES


def test_each_node_has_the_same_settings_and_cookie_and_data_of_its_own() -> None:
    data = set()
    for service in nodes().values():
        mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
        assert mounted["/etc/rabbitmq/conf.d/20-cluster.conf"] == "./cluster.conf"
        assert mounted["/etc/rabbitmq/advanced.config"] == "./advanced.config"
        assert service["secrets"] == ["bus_password", "erlang_cookie"]
        assert service["image"] == nodes()["rabbitmq"]["image"]
        data.add(mounted["/var/lib/rabbitmq"])
    assert len(data) == 3
    assert data <= set(clustered()["volumes"])
    file = DEPLOY / clustered()["secrets"]["erlang_cookie"]["file"]
    assert subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", ["worker", "topology"])
def test_a_client_knows_every_node_and_starts_when_all_are_there(name: str) -> None:
    service = clustered()["services"][name]
    assert {address.host for address in addresses(Settings(url=service["environment"]["BUS_URL"]))} == set(nodes())
    assert service["environment"]["BUS_PASSWORD_FILE"] == "/run/secrets/bus_password"
    for node in nodes():
        assert service["depends_on"][node] == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", sorted(nodes()))
def test_a_node_starts_with_the_cookie_and_the_password_of_the_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "bus_password").write_text("a $ecret\n")
    (tmp_path / "erlang_cookie").write_text("of all\n")
    program = tmp_path / "docker-entrypoint.sh"
    program.write_text('#!/bin/sh\necho "$RABBITMQ_DEFAULT_PASS|$*"\n')
    program.chmod(0o755)
    node = nodes()[name]
    entrypoint = [part.replace("$$", "$").replace("/run/secrets", str(tmp_path)) for part in node["entrypoint"]]
    done = subprocess.run(
        [part.replace("/var/lib/rabbitmq", str(tmp_path)) for part in [*entrypoint, *node["command"]]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "a $ecret|rabbitmq-server\n"
    assert (tmp_path / ".erlang.cookie").read_text() == "of all\n"
    assert (tmp_path / ".erlang.cookie").stat().st_mode & 0o777 == 0o400
