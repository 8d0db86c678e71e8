# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar's process: configuration, listeners, readiness, reload, shutdown."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import uvloop

from openshell_proxy import __version__
from openshell_proxy.audit import Audit
from openshell_proxy.authority import Authority, AuthorityError, Check
from openshell_proxy.configuration import Configuration, write_atomically
from openshell_proxy.control import Control
from openshell_proxy.destination import Guard, connected_networks
from openshell_proxy.entrances import gateway_forward, transparent
from openshell_proxy.entrances.dns import Datagrams, RefusedNames, serve_stream
from openshell_proxy.entrances.listener import Connections, Listener, proxy_port
from openshell_proxy.memory import Memory
from openshell_proxy.pipeline import Pipeline
from openshell_proxy.resolver import Resolver
from openshell_proxy.settings import DNS_PORT, GATEWAY_PORT, HTTP_PORT, PROXY_PORT, TLS_PORT, Settings

if TYPE_CHECKING:
    from openshell_proxy.entrances.name_server import NameServer

DRAIN_SECONDS = 0.4
_PR_SET_DUMPABLE = 4
PORTS = (PROXY_PORT, GATEWAY_PORT, HTTP_PORT, TLS_PORT, DNS_PORT)


class StartError(Exception):
    """The sidecar cannot serve; one sentence."""


class Sidecar:
    """One sidecar from start to stop. ``guard`` and ``ports`` are for tests, which have no sandbox around them."""

    def __init__(
        self, settings: Settings, guard: Guard | None = None, ports: Sequence[int] = PORTS,
        stdout: Any = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.ready_file = settings.tls_dir / ".ready"
        self.ready_file.unlink(missing_ok=True)  # one from before a crash or a reboot must not count
        try:
            pem = settings.authority.read_bytes()
            self._check = Check(pem)
        except OSError as error:
            raise StartError(f"no certificate authority: {error.strerror}") from None
        self.authority = Authority(pem)
        self.configuration = Configuration(settings)
        file = settings.audit_file if settings.audit_file.parent.is_dir() else None
        self.audit = Audit(settings.sandbox, file, stdout)
        guard = guard or Guard(own_networks=connected_networks(), resolver=Resolver())
        self.pipeline = Pipeline(self.configuration.load(), guard, self.audit, settings.limits)
        self.connections = Connections(settings.limits.connections)
        self.refused_names = RefusedNames(self.audit)
        self.control = Control(settings.control_socket, self.status, self.reload)
        self.listeners: list[Listener | Datagrams] = []
        self.memory = Memory(self.connections, self.audit, settings.cgroup)
        self.watchers: list[asyncio.Task[None]] = []
        self.ports = ports
        self.started = time.time()

    @functools.cached_property
    def names(self) -> NameServer:
        """What answers the agent's questions for names; it and its library are there from the first question on."""
        from openshell_proxy.entrances.name_server import NameServer

        return NameServer(
            self.settings, lambda host: self.pipeline.generation.policy.names_host(host), self.refused_names
        )

    async def start(self) -> None:
        """Bind everything, then say so. Raises :class:`StartError`."""
        pipeline, settings = self.pipeline, self.settings
        try:
            certificate = self._check.certificate()
        except AuthorityError as error:
            raise StartError(f"no certificate authority: {error}") from None
        serves = (
            (proxy_port(pipeline, self.authority), True),
            (lambda sock: gateway_forward.serve(pipeline, sock, settings.gateway), False),
            (transparent.http_port(pipeline), True),
            (transparent.tls_port(pipeline, self.authority), False),
            (lambda sock: serve_stream(lambda: self.names, sock, settings.limits.dns_idle), False),
        )
        try:
            for port, (serve, http) in zip(self.ports, serves, strict=True):
                address = (settings.proxy_ip, port)
                self.listeners.append(Listener(address, settings.agent_ip, serve, self.audit, self.connections, http))
            self.listeners.append(Datagrams(address, settings.agent_ip, lambda: self.names, self.refused_names))
            await self.control.start()
        except OSError as error:
            self._close_listeners()
            raise StartError(f"cannot listen at {settings.proxy_ip}: {error.strerror}") from None
        for listener in self.listeners:
            listener.begin()
        watches = (pipeline.under_way.watch(), self.memory.watch())
        self.watchers += [asyncio.get_running_loop().create_task(watch) for watch in watches]
        self._publish(certificate)
        self.audit.lifecycle("started", **self.configuration.report())

    def _publish(self, certificate: bytes) -> None:
        write_atomically(self.settings.tls_dir / "ca.pem", certificate.decode("ascii"))
        write_atomically(self.settings.tls_dir / "ca-bundle.pem", self.configuration.trust_bundle(certificate))
        write_atomically(self.ready_file, self.configuration.sentinel())

    def reload(self) -> dict[str, Any]:
        """Read the configuration again; what a bad one leaves in force is the failure mode's choice (spec 2.12)."""
        self.pipeline.replace(self.configuration.load())
        write_atomically(self.ready_file, self.configuration.sentinel())
        report = self.configuration.report()
        self.audit.lifecycle(_told(report), **report)
        return report

    def status(self) -> dict[str, Any]:
        """What ``openshell-proxy status`` prints."""
        return {
            **self.configuration.report(),
            "requests_allowed": self.audit.allowed,
            "requests_denied": self.audit.denied,
            "audit_lines_dropped": self.audit.dropped,
            "audit_file_error": self.audit.file_error,
            "connections": len(self.connections.tasks),
            "requests_under_way": len(self.pipeline.under_way),
            "uptime_seconds": int(time.time() - self.started),
            "started": int(self.started),
        }

    async def stop(self) -> None:
        """No longer ready, no new connection, a moment for those under way, then the end: within a second."""
        self.ready_file.unlink(missing_ok=True)
        self._close_listeners()
        for watcher in self.watchers:
            watcher.cancel()
        if self.connections.tasks:
            await asyncio.wait(self.connections.tasks, timeout=DRAIN_SECONDS)
        tasks = list(self.connections.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=0.1)
        self.pipeline.pool.clear()
        self.control.close()
        self.refused_names.end_of_period()
        self.audit.lifecycle("stopped")
        self.audit.close()

    def _close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners.clear()


def _told(report: dict[str, Any]) -> str:
    if report["quarantined"]:
        return "policy refused, everything is denied"
    return "policy refused" if report["policy_error"] else "policy loaded"


async def _run(settings: Settings, ports: Sequence[int]) -> None:
    sidecar = Sidecar(settings, ports=ports)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await sidecar.start()
    loop.add_signal_handler(signal.SIGHUP, sidecar.reload)
    gc.freeze()  # what lives as long as the process need not be looked at again and again
    gc.set_threshold(20_000, 20, 50)
    ctypes.CDLL(None).malloc_trim(0)  # what only the start needed: glibc would keep it for later, up to 4 MiB
    await stopping.wait()
    await sidecar.stop()


def keep_memory_private() -> None:
    """No core file, and no look into this process, which holds the secrets, by another of its user (prctl(2))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StartError("the kernel does not let this process keep its memory private")


def serve(settings: Settings, ports: Sequence[int] = PORTS) -> int:
    """Serve until told to stop; the process's exit code."""
    try:
        keep_memory_private()
        uvloop.run(_run(settings, ports))
    except StartError as error:
        print(f"openshell-proxy {__version__}: {error}", file=sys.stderr)
        return 1
    return 0
