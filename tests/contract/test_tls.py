"""S2: links in TLS with certificates on both sides; what is wrong is one line, and a renewal needs no restart."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from bus import AccessRefused, ConfigurationError, Service, Settings, TidegateError, connect, fixed
from bus import settings as environment
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.administration import administration
from tests.broker.certificates import Authority
from tests.broker.fixtures import Shared
from tests.broker.node import SECURITY

from .stage import WITHIN, Log, Placed, staged


ROOT = Path(__file__).parents[2]
ORDER = (
    '{"order_id": "6e0c2a4b-8f4e-4c39-9a5d-0b1f2c3d4e5f", "customer_id": "c", "placed_at": "2026-01-01T00:00:00Z", '
    '"lines": [{"sku": "s", "quantity": 1}]}'
)


@dataclass
class Site:
    """What connects to the broker in TLS: its port, and the files of a client that it lets in."""

    port: int
    plain_port: int
    vhost: str
    folder: Path
    files: dict[str, Path]

    def url(self, port: int = 0, scheme: str = "amqps", host: str = "127.0.0.1") -> str:
        return f"{scheme}://guest:guest@{host}:{port or self.port}/{self.vhost}"

    def settings(self, url: str = "", **changed: Any) -> Settings:
        return Settings(url=url or self.url(), **{"publish_timeout": 60.0, **self.files, **changed})


@pytest.fixture
def site(broker: Shared, vhost_name: str, tmp_path: Path) -> Site:
    files = {"ca_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.key"}
    for name in files.values():
        (tmp_path / name).write_bytes((broker.node.tls / name).read_bytes())
    copied = {setting: tmp_path / name for setting, name in files.items()}
    return Site(broker.node.tls_port, broker.port, vhost_name, tmp_path, copied)


@asynccontextmanager
async def front(certificate: Path, key: Path) -> AsyncIterator[int]:
    """Listen in TLS with this certificate; who connects is told nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_s2_everything_goes_over_tls_by_the_settings_of_the_page(site: Site) -> None:
    (block,) = re.findall(r"^```env\n(.*?)^```$", SECURITY.read_text(), re.MULTILINE | re.DOTALL)
    (site.folder / "password").write_text("guest\n")
    there = block.replace("/run/secrets", str(site.folder)).replace("inventory_worker@", "guest@")
    there = there.replace("rabbit.example:5671/", f"localhost:{site.port}/{site.vhost}")
    settings = environment.read(dict(line.split("=", 1) for line in there.splitlines()))
    log: Log[int] = Log()
    service = Service("inventory")

    @service.on(Placed, retry=fixed(2, 0.1))
    async def reserve(placed: Placed) -> None:
        log.append(placed.number)
        raise ValueError

    changed = {name: getattr(settings, name) for name in ("ca_file", "cert_file", "key_file", "password_file")}
    async with staged("rabbitmq", settings.url, **changed) as stage, stage.hosting(service):
        await stage.bus.publish(Placed(number=1), delay=0.1)
        (letter,) = await stage.letters("inventory")
        assert letter.failure.attempts == 2
    assert log == [1, 1]


def strange(site: Site) -> dict[str, Path]:
    certificate, key = Authority(site.folder / "other").sign("stranger", "stranger.example")
    return {"cert_file": certificate, "key_file": key}


def expired(broker: Shared) -> dict[str, Path]:
    return {"cert_file": broker.node.tls / "expired.pem", "key_file": broker.node.tls / "expired.key"}


def written(site: Site, name: str, text: str) -> Path:
    path = site.folder / name
    path.write_text(text)
    return path


def encrypted(site: Site) -> Path:
    path = site.folder / "encrypted.key"
    make = ["openssl", "ec", "-in", site.files["key_file"], "-aes256", "-passout", "pass:x", "-out", path]
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    return path


WRONG: dict[str, tuple[Callable[[Site, Shared], Settings], str]] = {
    "another authority": (
        lambda site, _: site.settings(ca_file=Authority(site.folder / "other").file),
        "certificate does not fit: .*; set BUS_CA_FILE to the certificate of the authority",
    ),
    "no authority": (
        lambda site, _: site.settings(ca_file=None),
        "certificate does not fit: .*; set BUS_CA_FILE to the certificate of the authority",
    ),
    "no certificate of ours": (
        lambda site, _: site.settings(cert_file=None, key_file=None),
        "the broker wants to see a certificate; set BUS_CERT_FILE and BUS_KEY_FILE",
    ),
    "a strange certificate of ours": (
        lambda site, _: site.settings(**strange(site)),
        "does not accept the certificate in BUS_CERT_FILE .*; have one that it trusts signed",
    ),
    "an expired certificate of ours": (
        lambda site, broker: site.settings(**expired(broker)),
        "the certificate in BUS_CERT_FILE has expired; renew it",
    ),
    "plain amqp to a port for TLS": (
        lambda site, _: Settings(url=site.url(scheme="amqp"), publish_timeout=60),
        "it speaks TLS there; write amqps:// in BUS_URL",
    ),
    "TLS to a plain port": (
        lambda site, _: site.settings(site.url(site.plain_port)),
        "it does not speak TLS there; BUS_URL needs the port for TLS, usually 5671, or amqp://",
    ),
    "no such file": (
        lambda site, _: site.settings(ca_file=site.folder / "none.pem"),
        r"BUS_CA_FILE: .*none\.pem cannot be read \(No such file or directory\); give a file",
    ),
    "a folder": (
        lambda site, _: site.settings(key_file=site.folder),
        r"BUS_KEY_FILE: .* cannot be read \(Is a directory\); give a file",
    ),
    "an authority that is none": (
        lambda site, _: site.settings(ca_file=written(site, "text", "hello")),
        "BUS_CA_FILE: .*text holds no certificate in PEM form",
    ),
    "a certificate that is none": (
        lambda site, _: site.settings(cert_file=written(site, "text", "hello")),
        "BUS_CERT_FILE: .*text holds no certificate in PEM form",
    ),
    "a garbled certificate": (
        lambda site, _: site.settings(cert_file=written(site, "text", "-----BEGIN CERTIFICATE-----\nx")),
        "BUS_CERT_FILE, BUS_KEY_FILE: .*text and .* cannot be used",
    ),
    "no key": (
        lambda site, _: site.settings(key_file=None),
        "BUS_CERT_FILE: .*client.pem holds no private key in PEM form; give the key's file in BUS_KEY_FILE",
    ),
    "a key that is none": (
        lambda site, _: site.settings(key_file=site.files["cert_file"]),
        "BUS_KEY_FILE: .*client.pem holds no private key in PEM form",
    ),
    "another's key": (
        lambda site, _: site.settings(key_file=strange(site)["key_file"]),
        "BUS_KEY_FILE: .*stranger.key is not the key of the certificate in .*client.pem",
    ),
    "an encrypted key": (
        lambda site, _: site.settings(key_file=encrypted(site)),
        "BUS_KEY_FILE: .*encrypted.key is encrypted, and nobody is asked for a passphrase; decrypt it",
    ),
    "a key without a certificate": (
        lambda site, _: site.settings(cert_file=None),
        "BUS_KEY_FILE is set without BUS_CERT_FILE",
    ),
    "files without TLS": (
        lambda site, _: site.settings(site.url(site.plain_port, "amqp")),
        "BUS_CA_FILE, BUS_CERT_FILE and BUS_KEY_FILE are for amqps://",
    ),
}


async def refusal(settings: Settings) -> TidegateError:
    """Return what publishing raises, at once: the publish timeout is longer than this waits."""
    with pytest.raises((AccessRefused, ConfigurationError)) as raised:
        async with asyncio.timeout(WITHIN), connect(settings=settings) as bus:
            await bus.publish(Placed())
    return raised.value


async def administration_refusal(settings: Settings) -> TidegateError:
    with pytest.raises((AccessRefused, ConfigurationError)) as raised:
        async with asyncio.timeout(WITHIN), administration(addresses(settings)):
            pass
    return raised.value


@pytest.mark.parametrize("wrong", WRONG)
async def test_s2_what_is_wrong_is_one_line_that_names_the_setting_and_the_remedy_at_once(
    wrong: str, site: Site, broker: Shared
) -> None:
    make, told = WRONG[wrong]
    settings = make(site, broker)
    for error in (await refusal(settings), await administration_refusal(settings)):
        assert re.search(told, str(error))
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("identities", "old", "told"),
    [
        (("127.0.0.1",), True, "does not fit: it has expired; renew it at the broker"),
        (("elsewhere.example",), False, "does not fit: it is not for the host 127.0.0.1; name the broker in BUS_URL"),
    ],
)
async def test_s2_a_certificate_of_the_broker_that_does_not_fit_is_one_line(
    identities: tuple[str, ...], old: bool, told: str, site: Site
) -> None:
    authority = Authority(site.folder / "theirs")
    async with front(*authority.sign("theirs", *identities, expired=old)) as port:
        settings = site.settings(site.url(port), ca_file=authority.file)
        for error in (await refusal(settings), await administration_refusal(settings)):
            assert told in str(error)
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("wrong", "command"),
    [
        ("another authority", ["run"]),
        ("no certificate of ours", ["dead", "list"]),
        ("an expired certificate of ours", ["publish", "order.placed", ORDER]),
        ("plain amqp to a port for TLS", ["run"]),
        ("another's key", ["dead", "list"]),
    ],
)
async def test_s2_a_command_tells_it_in_one_line_and_exits_2(
    wrong: str, command: list[str], site: Site, broker: Shared
) -> None:
    make, told = WRONG[wrong]
    settings = make(site, broker)
    given = {f"BUS_{name.upper()}": str(value) for name in ("url", *site.files) if (value := getattr(settings, name))}
    bare = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
    run = [sys.executable, "app.py", *command]
    done = await asyncio.to_thread(
        subprocess.run, run, cwd=ROOT, env=bare | given, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    lines = [line for line in done.stderr.splitlines() if "worker starting" not in line]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, lines
    assert re.search(told, lines[0])


async def test_s2_a_worker_waits_through_a_renewal_and_reads_the_new_files(site: Site, broker: Shared) -> None:
    log: Log[int] = Log()
    service = Service("inventory")

    @service.on(Placed)
    async def reserve(placed: Placed) -> None:
        log.append(placed.number)

    good = {name: path.read_bytes() for name, path in site.files.items()}
    bad = strange(site)
    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", site.url(), **site.files) as stage, stage.hosting(service):
            await stage.bus.publish(Placed(number=1))
            await log.reaches(1)
            # the certificate is written first, and meanwhile the key is another's; then both are not accepted
            for half in (["cert_file"], ["cert_file", "key_file"]):
                for name in half:
                    site.files[name].write_bytes(bad[name].read_bytes())
                logs.clear()
                await asyncio.to_thread(broker.node.ctl, "close_all_connections", "--vhost", site.vhost, "renewal")
                await until(lambda: any("BUS_" in entry.get("error", "") for entry in logs), "the reason")
                for name, content in good.items():
                    site.files[name].write_bytes(content)
                await stage.bus.publish(Placed(number=2))
                await until(lambda: both_reachable(logs), "both links")
            await log.reaches(3)


def both_reachable(logs: list[Any]) -> bool:
    return {entry["link"] for entry in logs if entry["event"] == "broker reachable"} == {"publish", "consume"}


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(WITHIN):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {WITHIN} s for {what}") from None
