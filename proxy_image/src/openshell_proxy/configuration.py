# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sidecar's configuration files, read again on request; what cannot be used never replaces what works."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openshell_proxy import __version__
from openshell_proxy.authority import UpstreamTls, bundle
from openshell_proxy.credentials.document import SecretsError, load_vault
from openshell_proxy.credentials.vault import Vault
from openshell_proxy.pipeline import Generation
from openshell_proxy.policy import Policy, PolicyError, deny_all, load_policy
from openshell_proxy.relay.dialer import Dialer
from openshell_proxy.settings import Settings
from openshell_proxy.upstream_proxy import authorization

if TYPE_CHECKING:
    from openshell_proxy.inference.routes import Routes

SYSTEM_ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")


def read_bytes(path: Path) -> bytes:
    """The file's bytes; an absent one is empty."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def digest(data: bytes) -> str:
    """SHA-256 as hexadecimal digits; "" for nothing."""
    return hashlib.sha256(data).hexdigest() if data else ""


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Put *text* at *path* so that a reader sees the old file or the new one, never half."""
    partial = path.with_name(path.name + ".part")
    with open(partial, "w", encoding="utf-8") as handle:
        handle.write(text)
        os.fchmod(handle.fileno(), mode)
    os.replace(partial, path)


@dataclasses.dataclass(slots=True)
class Configuration:
    """Loads generations and tells about them. ``error`` says why the files as last read are not in force.

    What then is in force: the last good policy, or (``fail_closed``, ``quarantined``) one that denies all (spec 2.12).
    """

    settings: Settings
    generation: Generation | None = None
    error: str = ""
    secrets_error: str = ""
    read_policy_digest: str = ""
    read_upstream_ca_digest: str = ""
    trusted_digest: str = ""
    vault_digest: str = ""  # told to nobody: from the digest of a short secret it can be guessed
    inference_error: str = ""
    inference_digest: str = ""  # told to nobody either
    quarantined: bool = False

    def load(self) -> Generation:
        """The generation to serve: the files' if they are good, else the last good one, else one that denies all."""
        policy_bytes = read_bytes(self.settings.policy_file)
        upstream_bytes = read_bytes(self.settings.upstream_ca_file)
        self.read_policy_digest = digest(policy_bytes)
        self.read_upstream_ca_digest = digest(upstream_bytes)
        self.error = ""
        before = self.generation
        tls = self._trust(upstream_bytes)
        dialer = self._dialer()
        policy = self._policy(policy_bytes)
        self.quarantined = bool(self.error) and (before is None or self.settings.failure_mode == "fail_closed")
        if self.quarantined:
            policy = deny_all()
        if before and policy.digest == before.policy.digest:
            policy = before.policy  # the very same: connections have nothing to begin anew for
        vault = self._vault()
        number = before.number + 1 if before else 1
        self.generation = Generation(number, policy, tls, dialer, vault, self._routes(vault))
        return self.generation

    def _policy(self, data: bytes) -> Policy:
        try:
            if not data.strip():
                return deny_all()
            text = data.decode("utf-8")
            enforcement = self.settings.default_enforcement
            return load_policy(text, source="policy", default_enforcement=enforcement, composed=True)
        except UnicodeDecodeError:
            self.error = "policy:1: the policy is not UTF-8"
        except PolicyError as error:
            self.error = str(error)
        except Exception as error:  # a fault of ours must not leave a policy in force that the failure mode would not
            self.error = f"policy:1: the policy cannot be read ({type(error).__name__})"
        return self.generation.policy if self.generation else deny_all()

    def _vault(self) -> Vault:
        """The secrets with their bindings, all of the file or all of before."""
        self.secrets_error = ""
        data = read_bytes(self.settings.secrets_file)
        if self.generation and digest(data) == self.vault_digest:
            return self.generation.vault
        try:
            vault = load_vault(data.decode("utf-8"), self.generation.vault if self.generation else None)
            self.vault_digest = digest(data)
            return vault
        except UnicodeDecodeError:
            self.secrets_error = "the secrets file is not UTF-8"
        except SecretsError as error:
            self.secrets_error = str(error)
        return self.generation.vault if self.generation else Vault()

    def _routes(self, vault: Vault) -> Routes | None:
        """The routes of inference, all of the file or all of before; what reads them is loaded where there are some."""
        self.inference_error = ""
        data = read_bytes(self.settings.inference_file)
        before = self.generation.inference if self.generation else None
        if self.generation and digest(data) == self.inference_digest:
            return before
        routes = None
        if data.strip():
            from openshell_proxy.inference.document import RoutesError, load_routes

            try:
                routes = load_routes(data.decode("utf-8"), vault)
            except UnicodeDecodeError:
                self.inference_error = "the inference file is not UTF-8"
            except RoutesError as error:
                self.inference_error = str(error)
        if self.inference_error:
            return before
        self.inference_digest = digest(data)
        return routes

    def _trust(self, data: bytes) -> UpstreamTls:
        if self.generation and digest(data) == self.trusted_digest:
            return self.generation.tls
        try:
            made = UpstreamTls(data.decode("ascii", "ignore") if data.strip() else "")
            self.trusted_digest = digest(data)
            return made
        except ssl.SSLError as error:
            self.error = f"the upstream CA bundle is not PEM certificates: {error.reason}"
        return self.generation.tls if self.generation else UpstreamTls("")

    def _dialer(self) -> Dialer:
        before = self.generation.dialer if self.generation else None
        secret = read_bytes(self.settings.upstream_proxy_auth_file) if self.settings.upstream_proxy else b""
        try:
            header = authorization(secret.decode("ascii")) if secret.strip() else b""
        except ValueError:
            self.error = "the upstream proxy's credentials are not user:password in printable ASCII on one line"
            header = before.authorization if before else b""
        made = Dialer(self.settings.limits, self.settings.upstream_proxy, header)
        return before if before == made else made

    def trust_bundle(self, authority: bytes) -> str:
        """What replaces a tool's trust store in the agent: system roots and our authority."""
        return bundle(read_bytes(SYSTEM_ROOTS).decode("ascii", "ignore"), authority.decode("ascii"))

    def sentinel(self) -> str:
        """The content of ``.ready``, which the collection waits for."""
        assert self.generation is not None
        return json.dumps({"started_ticks": started_ticks(), "pid": os.getpid(), **self.report()}) + "\n"

    def report(self) -> dict[str, Any]:
        assert self.generation is not None
        return {
            "version": __version__,
            "generation": self.generation.number,
            "policy_digest": self.generation.policy.digest,
            "read_policy_digest": self.read_policy_digest,
            "read_upstream_ca_digest": self.read_upstream_ca_digest,
            "policy_error": self.error,
            "quarantined": self.quarantined,
            "credentials": len(self.generation.vault.secrets),
            "credentials_error": self.secrets_error,
            "inference_routes": len(self.generation.inference.listed) if self.generation.inference else 0,
            "inference_error": self.inference_error,
        }


def started_ticks() -> int:
    """When this process started, in clock ticks after boot: proc(5), stat, field 22."""
    return int(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19])
