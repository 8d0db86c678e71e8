# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one policy text that goes to the sidecar, from whatever form the user gave it in."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Mapping, cast

import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.text.converters import to_native
from ansible.utils.display import Display
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.openshell.sandbox.plugins.module_utils.secret_entries import Refused
from ansible_collections.openshell.sandbox.plugins.plugin_utils.providers import (
    POLICY_PREFIX,
    given_providers,
    policies,
    provider_ids,
)

DOCUMENTATION = r"""
name: policy_text
short_description: A policy's YAML text from a path or a mapping
version_added: 0.1.0
description:
  - Reads the file, or writes the mapping as YAML, and adds further entries to C(network_policies).
  - A file without additions is passed on byte for byte, so that the engine's messages have the right line numbers.
  - Braces in the text are the policy's own; no version of Ansible takes them for a template.
positional: _input
options:
  _input:
    description: Path of a file on the controller, a mapping, or empty for a policy that allows nothing.
    type: raw
    required: true
  entries:
    description: Entries to add to C(network_policies), name to policy.
    type: dict
    default: {}
  providers:
    description: Providers, as C(openshell_providers) has them, whose endpoints are added.
    type: list
    elements: raw
    default: []
  providers_path:
    description: Directory of the controller with providers of the user's own.
    type: str
    default: ''
  default_enforcement:
    description: What an endpoint of the policy without enforcement gets.
    type: str
    default: enforce
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- ansible.builtin.set_fact:
    text: "{{ 'policy.yaml' | openshell.sandbox.policy_text }}"
"""

RETURN = r"""
_value:
  description: YAML text.
  type: str
"""

NOTHING_ALLOWED = "version: 1\nnetwork_policies: {}\n"


def policy_text(
    policy: Any,
    entries: Mapping[str, Any] | None = None,
    providers: Any = (),
    providers_path: str = "",
    default_enforcement: str = "enforce",
) -> str:
    """YAML text of *policy*; raises AnsibleFilterError with one sentence."""
    text = _text(policy)
    entries = {**(entries or {}), **_of_providers(text, providers or [], providers_path, default_enforcement)}
    # Before 2.19 ansible-core templates a fact's text again where it is used, a file's {{ lookup('pipe', …) }} included.
    return cast(str, wrap_var(_with_entries(text, entries) if entries else text))


def _of_providers(text: str, providers: Any, providers_path: str, default_enforcement: str) -> Dict[str, Any]:
    reserved = provider_ids(text) if POLICY_PREFIX in text else []
    if reserved:
        name = POLICY_PREFIX + reserved[0]
        raise AnsibleFilterError(
            f"openshell_policy: network policy '{name}' is for openshell_providers to make; name it otherwise"
        )
    try:
        made, notices = policies(given_providers(providers, providers_path), text, default_enforcement)
    except Refused as refused:
        raise AnsibleFilterError(str(refused)) from None
    for notice in notices:
        Display().warning(notice)
    return made


def _text(policy: Any) -> str:
    if not policy:
        return NOTHING_ALLOWED
    if isinstance(policy, Mapping):
        return yaml.safe_dump(_plain(policy), sort_keys=False, allow_unicode=True)
    if not isinstance(policy, str):
        raise AnsibleFilterError("openshell_policy must be the path of a policy file or a mapping")
    path = os.path.expanduser(policy)
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise AnsibleFilterError(f"openshell_policy {policy} cannot be read: {reason}") from None


def _with_entries(text: str, entries: Mapping[str, Any]) -> str:
    """Add *entries* on the level of YAML nodes: what is wrong with the user's text stays visible to the engine."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        added = yaml.compose(yaml.safe_dump(_plain(entries), sort_keys=False), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise AnsibleFilterError(f"openshell_policy is not YAML: {' '.join(to_native(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise AnsibleFilterError("openshell_policy must hold a mapping with version and network_policies")
    for index, (key, value) in enumerate(root.value):
        if key.value == "network_policies" and isinstance(value, yaml.MappingNode):
            value.value.extend(cast(yaml.MappingNode, added).value)
            value.flow_style = False
            break
        if key.value == "network_policies" and value.tag == "tag:yaml.org,2002:null":
            root.value[index] = (key, added)
            break
    else:
        root.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", "network_policies"), added))
    return str(yaml.serialize(root))


def _plain(value: Any) -> Any:
    """The same data as YAML's own types: Ansible's tagged strings have no representer."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    return next((kind(value) for kind in (int, float) if isinstance(value, kind)), str(value))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"policy_text": policy_text}
