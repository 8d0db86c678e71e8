# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line of the image: ``openshell-proxy COMMAND``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from openshell_proxy import __version__
from openshell_proxy.entrances.authority_form import parse_proxy_uri
from openshell_proxy.policy import (
    Intent,
    Policy,
    PolicyError,
    Request,
    TargetError,
    canonical_path,
    load_policy,
    parse_query,
)
from openshell_proxy.policy.model import Enforcement
from openshell_proxy.refusal import Refusal
from openshell_proxy.settings import SettingsError, read_settings

if TYPE_CHECKING:
    import argparse

REFUSED = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 done, 1 failed, 2 the input or what it asks for is refused."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words == ["serve"]:  # has no options: every sidecar would keep a parser that none of them needs again
            return _serve()
        options = _parser().parse_args(words)
        return int(options.run(options))
    except SettingsError as error:
        print(f"openshell-proxy: {error}", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"openshell-proxy: {error.filename or 'the sidecar'}: {error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser("openshell-proxy", description="The sidecar that is a sandbox's only way out.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    command("serve", "Serve the sandbox that the environment describes.").set_defaults(run=_serve)
    check = command("check-policy", "Judge a policy file; print what is wrong with it, line by line.")
    check.add_argument("file", help="a policy file, or - for standard input")
    check.add_argument("--source", default="policy", help="what standard input is called in messages")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_check_policy)
    explain = command("explain", "Tell what a policy decides about one request, and which rule decided.")
    explain.add_argument("file", help="a policy file, or - for standard input")
    explain.add_argument("method")
    explain.add_argument("url")
    explain.add_argument("--source", default="policy", help="what standard input is called in messages")
    explain.add_argument("--body", metavar="FILE", help="the request's body, for protocols whose body is judged")
    explain.set_defaults(run=_explain)
    authority = command("authority", "Make a certificate authority.")
    authority.add_argument("action", choices=["new"], help="print a new key and certificate in PEM")
    authority.set_defaults(run=_authority)
    command("status", "Print the living sidecar's status as JSON.").set_defaults(run=_status)
    command("reload", "Make the living sidecar read its configuration again.").set_defaults(run=_reload)
    command("version", "Print the version.").set_defaults(run=_version)
    return parser


def _serve(_options: argparse.Namespace | None = None) -> int:
    from openshell_proxy.server import serve

    return serve(read_settings(os.environ))


def _load(file: str, source: str) -> Policy:
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    enforcement: Enforcement = "audit" if os.environ.get("OPENSHELL_DEFAULT_ENFORCEMENT") == "audit" else "enforce"
    if not text.strip():
        from openshell_proxy.policy import deny_all

        return deny_all()
    composed = os.environ.get("OPENSHELL_POLICY_COMPOSED") == "true"
    source = source if file == "-" else file
    return load_policy(text, source=source, default_enforcement=enforcement, composed=composed)


def _check_policy(options: argparse.Namespace) -> int:
    errors: list[str] = []
    notices: list[str] = []
    digest = ""
    covered: dict[str, list[str]] = {}
    try:
        policy = _load(options.file, options.source)
        notices, digest = list(policy.notices), policy.digest
        for one in policy.document.middlewares:
            covered[one.name] = sorted({end.host for end in policy.document.endpoints if one.may_cover(end)})
    except UnicodeDecodeError:
        errors = [f"{options.file}:1: the policy is not UTF-8"]
    except PolicyError as error:
        errors = list(error.errors)
    if options.json:
        told = {"ok": not errors, "errors": errors, "notices": notices, "digest": digest, "middlewares": covered}
        print(json.dumps(told))
    else:
        for line in errors:
            print(line)
        for line in notices:
            print(f"notice: {line}")
        for name, hosts in covered.items():
            print(f"middleware '{name}' covers: {' '.join(host or 'any host' for host in hosts) or 'no endpoint'}")
        print("refused" if errors else "ok")
    return REFUSED if errors else 0


def _explain(options: argparse.Namespace) -> int:
    """Exit codes: 0 allowed (also by audit), 2 denied, or not a request that would get as far as the policy."""
    try:
        policy = _load(options.file, options.source)
        intent = _intent(policy, options.method, options.url)
        body = Path(options.body).read_bytes() if options.body else None
    except (PolicyError, TargetError, Refusal, ValueError) as error:
        print(f"refused: {getattr(error, 'detail', error)}")
        return REFUSED
    request = intent.request
    assert request is not None
    if body is not None:
        request = dataclasses.replace(request, body=body)
    decision = policy.decide(dataclasses.replace(intent, request=request))
    verdict = "audit" if decision.audited else "allow" if decision.allowed else "deny"
    print(f"{verdict} {request.method} {intent.host}:{intent.port}{request.path}")
    told = {"policy": decision.policy, "line": str(decision.line or ""), "rule": decision.rule, "layer": decision.layer}
    told["protocol"], told["middleware"] = decision.protocol, _middlewares(policy, intent.host)
    for name, value in told.items():
        print(f"{name}: {value or '-'}")
    if decision.body_limit and not decision.allowed:
        print(f"reason: {decision.reason}; give it with --body FILE (up to {decision.body_limit} bytes)")
    elif decision.reason:
        print(f"reason: {decision.reason}")
    elif decision.layer == "l4":
        print("reason: the endpoint allows every connection, its requests are not judged")
    return 0 if decision.allowed else REFUSED


def _middlewares(policy: Policy, host: str) -> str:
    """Those that see what goes to *host*, each with what it does where it cannot."""
    found = policy.middlewares(host)
    return ", ".join(f"{one.name} ({'fail_closed' if one.fails_closed else 'fail_open'})" for one in found)


def _intent(policy: Policy, method: str, url: str) -> Intent:
    """The question that the entrances would ask for *url*."""
    scheme, host, port, target = parse_proxy_uri(url.partition("#")[0])
    if scheme not in ("http", "https", "ws", "wss"):
        raise ValueError("the URL must begin with http:// or https://")
    connection = policy.decide(Intent(host, port))
    path, query = canonical_path(target, allow_encoded_slash=connection.allow_encoded_slash)
    return Intent(host, port, Request(method.upper(), path, parse_query(query)))


def _authority(_options: argparse.Namespace) -> int:
    from openshell_proxy.minting import new_authority

    sys.stdout.write(new_authority().decode("ascii"))
    return 0


def _control_socket() -> Path:
    return Path(os.environ.get("OPENSHELL_RUN_DIR") or "/run/openshell") / "control.sock"


def _status(_options: argparse.Namespace) -> int:
    from openshell_proxy.control_client import ask

    _, answer = ask(_control_socket(), "GET", "/status")
    print(json.dumps(answer))
    return 0


def _reload(_options: argparse.Namespace) -> int:
    from openshell_proxy.control_client import ask

    status, answer = ask(_control_socket(), "POST", "/reload")
    print(json.dumps(answer))
    return 0 if status == 200 else REFUSED


def _version(_options: argparse.Namespace) -> int:
    print(__version__)
    return 0
