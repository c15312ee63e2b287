"""One private RabbitMQ node: own ports, own data, own Erlang name server; may be stopped, killed and started again."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from .certificates import Authority
from .install import Programs, programs
from .operator import answer, expression, question


READY_WITHIN = 100.0
ADVANCED = "[{rabbit,[{dead_letter_worker_publisher_confirm_timeout,3000},{channel_tick_interval,1000}]}]."
PORTS = range(10_000, 32_000)
WORKERS = 16
_GIVEN = set[int]()
SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def tls_settings(folder: Path, listen: str) -> str:
    """Return the broker's settings for TLS as the docs have them, for certificates in a folder."""
    (block,) = re.findall(r"^```ini\n(.*?)^```$", SECURITY.read_text(), re.MULTILINE | re.DOTALL)
    settings = block.replace("listeners.tcp = none\n", "").replace("/etc/rabbitmq/tls", str(folder))
    return settings.replace("= 5671\n", f"= {listen}\n")


class Node:
    """A broker of the tests' own. `start` after `stop` or `kill` goes on with the same data.

    One that is made `beside` another may join its cluster. At `tls_port` it wants a certificate of whoever connects:
    `tls` has its own, the authority's, one for a client, and one that has expired.
    """

    def __init__(self, beside: Node | None = None) -> None:
        self.programs = programs()
        within = Path(self.programs.root, tempfile.gettempdir().lstrip("/"))
        within.mkdir(exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="tidegate-broker-", dir=within))
        self.port, self.tls_port, self._dist, self._epmd = free_ports(4)
        self._name = f"tidegate{self.port}"
        self._cookie = self._name
        if beside is not None:
            self._epmd, self._cookie = beside._epmd, beside._cookie
        self._container = ""
        for name in ("home", "mnesia", "log"):
            (self.folder / name).mkdir()
        cookie = self.folder / "home" / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[].")
        self.tls = self.folder / "tls"
        authority = Authority(self.tls)
        authority.sign("broker")
        authority.sign("client", "client.example")
        authority.sign("expired", "client.example", expired=True)
        seen = self.tls if self.programs.image else Path("/", self.tls.relative_to(self.programs.root))
        listen = "5671" if self.programs.image else f"127.0.0.1:{self.tls_port}"
        (self.folder / "tls.conf").write_text(tls_settings(seen, listen))
        (self.folder / "advanced.config").write_text(ADVANCED)
        logging = "log.file.level = info\nlog.console = false\n"
        (self.folder / "rabbitmq.conf").write_text(logging + (self.folder / "tls.conf").read_text())

    @property
    def erlang_name(self) -> str:
        """What Erlang calls it."""
        return f"{self._name}@localhost"

    def url(self, vhost: str = "/") -> str:
        """Return the URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{'' if vhost == '/' else vhost}"

    def start(self) -> None:
        """Start, and return when the broker takes connections."""
        if self.programs.image:
            self._start_container()
        else:
            # a shell's background job, so that no process of the tests has to wait for it
            start = '"$0" "$@" >>log/out 2>&1 </dev/null &'
            subprocess.run(
                ["sh", "-c", start, *self.programs.command("rabbitmq-server")],
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
                check=True,
                timeout=10,
            )
        self._wait_for_port()
        self.ctl("await_startup", "--timeout", "60")

    def stop(self) -> None:
        """Stop as an operator does, and return when the process is gone."""
        if self._container:
            subprocess.run(["docker", "stop", self._container], check=True, capture_output=True, timeout=60)
        elif (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGTERM)
            _wait_for_end(pid)

    def kill(self) -> None:
        """Kill the process, as a power cut does."""
        if self._container:
            subprocess.run(["docker", "kill", self._container], check=True, capture_output=True, timeout=60)
        elif (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGKILL)
            _wait_for_end(pid)

    def keep(self) -> None:
        """Have the queues outlive a kill that were just declared: what they are called is written once in a while."""
        self.ctl("eval", "[dets:sync(T) || T <- dets:all()].")

    def freeze(self) -> None:
        """Stop the process without ending it; the kernel still takes connections for it."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have a process go on that was frozen."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid()
        assert pid is not None, f"{self.erlang_name} does not run"
        os.kill(pid, number)

    def close(self) -> None:
        """End everything that was started here, and remove the data."""
        if self._container:
            subprocess.run(["docker", "rm", "-f", self._container], check=False, capture_output=True, timeout=60)
        else:
            self.kill()
            end = ["epmd", "-port", str(self._epmd), "-kill"]
            if self.programs.root != "/":
                end = Programs("/usr/bin", self.programs.root).command(*end)
            if shutil.which(end[0]):
                subprocess.run(end, check=False, capture_output=True, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pid(self) -> int | None:
        """Return the process id of the broker, None while it does not run."""
        try:
            pid = int((self.folder / "pid").read_text())
            os.kill(pid, 0)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None
        return pid

    def ctl(self, *arguments: str) -> str:
        """Do what rabbitmqctl does with these words, and return what it printed."""
        code = expression(arguments)
        call = self._erl_call()
        if code is None or not call:
            return self.run("rabbitmqctl", *arguments)
        # a name for each call: a node refuses a second caller of one name, also while it still forgets the first
        asker = f"asker{os.getpid()}x{time.monotonic_ns()}"
        command = [*call, "-h", asker, "-c", self._cookie, "-sname", self.erlang_name, "-e"]
        done = subprocess.run(
            command,
            env=self._environment(),
            input=question(code),
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        value = answer(done.stdout)
        if value is None:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stdout} {done.stderr}")
        return value

    def run(self, program: str, *arguments: str) -> str:
        """Run one of RabbitMQ's programs on the node and return what it printed; fails where the program does."""
        if self._container:
            command = ["docker", "exec", self._container, program, "-q", *arguments]
            environment = None
        else:
            command = self.programs.command(program, "-q", "-n", self.erlang_name, *arguments)
            environment = self._environment()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=150)
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stdout} {done.stderr}")
        return done.stdout

    def _erl_call(self) -> list[str]:
        """Return how Erlang's program for calls is run, nothing where it is not to be had."""
        if self._container:
            return []
        if self.programs.root != "/":
            return Programs("/usr/bin", self.programs.root).command("erl_call")
        return [found] if (found := shutil.which("erl_call")) else []

    def add_vhosts(self, names: list[str]) -> None:
        """Add virtual hosts that guest may use, all in one call."""
        quoted = ",".join(f'<<"{name}">>' for name in names)
        self.ctl(
            "eval",
            f'[begin rabbit_vhost:add(V, <<"tests">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>) end || V <- [{quoted}]].',
        )

    def delete_vhosts(self, names: list[str]) -> None:
        """Delete virtual hosts with all that is in them, in one call."""
        quoted = ",".join(f'<<"{name}">>' for name in names)
        self.ctl("eval", f'[rabbit_vhost:delete(V, <<"tests">>) || V <- [{quoted}]].')

    def time_out_consumers(self, milliseconds: int) -> None:
        """Take back what is unacked for longer; a queue of `/` that has a limit of its own listens to a policy only."""
        if self.version().startswith("3.10"):
            self.ctl("eval", f"application:set_env(rabbit, consumer_timeout, {milliseconds}).")
        else:
            limit = f'{{"consumer-timeout":{milliseconds}}}'
            self.ctl("set_policy", "--apply-to", "queues", "impatient", ".*", limit)

    def version(self) -> str:
        """Return the broker's version."""
        return self.ctl("eval", "rabbit_misc:version().").strip().strip('"')

    def _environment(self) -> dict[str, str]:
        folder = f"/{self.folder.relative_to(self.programs.root)}"
        return {
            "PATH": os.environ["PATH"],
            "HOME": f"{folder}/home",
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.erlang_name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/conf",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
        }

    def _start_container(self) -> None:
        if self._container:
            subprocess.run(["docker", "start", self._container], check=True, capture_output=True, timeout=60)
            return
        config = ["-v", f"{self.folder / 'advanced.config'}:/etc/rabbitmq/advanced.config:ro"]
        config += ["-v", f"{self.folder / 'tls.conf'}:/etc/rabbitmq/conf.d/90-tls.conf:ro"]
        config += ["-v", f"{self.tls}:{self.tls}:ro"]
        ports = ["-p", f"127.0.0.1:{self.port}:5672", "-p", f"127.0.0.1:{self.tls_port}:5671"]
        command = ["docker", "run", "-d", *ports, *config, self.programs.image]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        self._container = done.stdout.strip()

    def _wait_for_port(self) -> None:
        end = time.monotonic() + READY_WITHIN
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        log = "\n".join(path.read_text(errors="replace")[-2000:] for path in (self.folder / "log").iterdir())
        raise RuntimeError(f"the private broker did not start within {READY_WITHIN:g} s:\n{log}")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has or gets: the system gives away others, and so does each other worker of xdist."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(range(PORTS.start + worker, PORTS.stop, WORKERS))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _GIVEN:
                _GIVEN.add(port)
                found.append(port)
    return found


def _wait_for_end(pid: int) -> None:
    end = time.monotonic() + READY_WITHIN
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise RuntimeError(f"the private broker (process {pid}) did not end")
