#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sandbox_secrets
short_description: Give a sandbox's sidecar the secrets that its agent never sees
version_added: 0.1.0
description:
  - Finds the values on the controller and puts them, with what they are bound to, on the volume that only the sidecar has.
  - A living sidecar takes all of them at once, without a restart. What it refuses is taken back.
  - Secrets that are there and not in the list are removed.
  - This is an action plugin, which finds the values and has M(openshell.sandbox.sandbox_secrets_file) hand them over.
  - No value is in any output, difference, fact, argument or log, whatever the verbosity.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  sandbox_name:
    description: Name of the sandbox.
    type: str
    required: true
  entries:
    description: The secrets.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the secret is called, in messages and in placeholders.
        type: str
        required: true
      value:
        description: The value; exactly one of O(entries[].value), C(command), C(file) and C(from_env) says it.
        type: str
      command:
        description: A command of the controller that prints the value; run without a shell.
        type: raw
      file:
        description: A file of the controller that holds the value, encrypted by a vault or not.
        type: str
      from_env:
        description: The variable of the controller's environment that holds the value.
        type: str
      hosts:
        description: Hosts that may get it, names or wildcards as in a policy.
        type: list
        elements: str
        required: true
      ports:
        description: Ports that it is bound to; none named is every port that the policy allows.
        type: list
        elements: int
      paths:
        description: Path globs that it is bound to; none named is every path.
        type: list
        elements: str
      header:
        description: Header that the destination gets it in, whatever the client sends there.
        type: str
      format:
        description: Content of that header, with C({value}) for the value; C(basic) puts it there in base64.
        type: str
      username:
        description: User in front of the value where O(entries[].format) is C(basic).
        type: str
      oauth:
        description:
          - Makes the value what buys an access token, which the sidecar asks for and renews; the token is what is put in.
          - C(grant) is C(refresh_token), C(client_credentials) or C(service_account) (the value is its key file), C(token_url)
            where to ask; C(client_id), C(client_secret) and C(scope) as the grant needs them.
        type: dict
      env:
        description: Variable in which the agent sees the placeholder.
        type: str
      placeholder:
        description: Which placeholder that is; C(random) is one of this sandbox alone, of the value's length.
        type: str
        choices: [canonical, random]
        default: canonical
  providers:
    description:
      - Providers whose secrets the sidecar is to have, each the id of one or a mapping of C(id) and C(secrets).
      - C(secrets) maps a variable of the provider to one of C(value), C(command), C(file) and C(from_env); without it the
        controller's own variables are taken. Where there is none, the module says so in RV(notices).
      - A secret of O(entries) with the same name or variable takes the place of a provider's.
    type: list
    elements: raw
    default: []
  providers_path:
    description: Directory of the controller with providers of the user's own, looked into first.
    type: str
    default: ''
  policy:
    description: The policy's YAML text, to come into force in the same moment; empty leaves the one that there is.
    type: str
    default: ''
  keep:
    description: Which secrets of before stay beside these, the user's C(own) or those of C(providers).
    type: list
    elements: str
    choices: [own, providers]
    default: []
  judge_only:
    description: Only judge the entries, without looking for values or speaking to Podman.
    type: bool
    default: false
  timeout:
    description: Seconds to wait for the sidecar.
    type: int
    default: 15
author:
  - The openshell.sandbox contributors (@openshell)
"""

EXAMPLES = r"""
- name: Rotate a token
  openshell.sandbox.sandbox_secrets:
    sandbox_name: demo
    entries:
      - name: github
        command: [gh, auth, token]
        hosts: [api.github.com]
        header: Authorization
        format: Bearer {value}
        env: GITHUB_TOKEN
  no_log: true
"""

RETURN = r"""
env:
  description: Variable to placeholder, and a provider's settings, for the agent.
  returned: success
  type: dict
notices:
  description: What the user should know of the providers.
  returned: success
  type: list
  elements: str
"""
