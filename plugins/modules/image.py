#!/usr/bin/python
# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Have the image of the sidecar or of the agent
version_added: 0.1.0
description:
  - Builds the image from a context whose content names it, once; a second run finds it there.
  - The base image is pulled where a registry answers, else bootstrapped from this host's own package mirror.
  - An image of the user's own (O(reference)) is pulled when it is not there.
extends_documentation_fragment:
  - openshell.sandbox._attributes
  - openshell.sandbox._attributes.actiongroup
  - openshell.sandbox.podman
options:
  kind:
    description: Whose image.
    type: str
    choices: [proxy, agent]
    required: true
  reference:
    description: Name of an image that is used as it is; nothing is built then.
    type: str
    default: ""
  context:
    description: The build context as P(openshell.sandbox.build_context#filter) makes it.
    type: str
    default: ""
  packages:
    description: Distribution packages that the image has.
    type: list
    elements: str
    default: []
  base_source:
    description: Where the base image comes from; V(auto) pulls where the registry answers and bootstraps otherwise.
    type: str
    choices: [auto, pull, bootstrap]
    default: auto
  base_reference:
    description: The base image's full name in its registry.
    type: str
    default: docker.io/library/debian:bookworm-slim
  upstream_ca_bundle:
    description: PEM bundle that the build trusts, for a host behind a proxy that inspects TLS.
    type: str
    default: ""
  ulimits:
    description: Resource limits of the build's containers.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Have the proxy image
  openshell.sandbox.image:
    kind: proxy
    context: "{{ 'proxy_image' | openshell.sandbox.build_context }}"
    packages: [ca-certificates, python3, python3-venv]
"""

RETURN = r"""
image_id:
  description: Id of the image; empty in check mode when it would be built.
  returned: success
  type: str
image:
  description: Name of the image.
  returned: success
  type: str
"""

import base64
import hashlib
import json
from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.openshell.sandbox.plugins.module_utils.base_image import (
    NoBase,
    bootstrap,
    build_arguments,
    choose,
    pull,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.module import (
    ModuleFailure,
    client,
    diff,
    new_module,
    run_module,
)
from ansible_collections.openshell.sandbox.plugins.module_utils.podman import Podman, last_words


def short_digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def wanted_name(params: Dict[str, Any]) -> str:
    """The image's name: the user's, or one that its content gives."""
    if params["reference"]:
        return str(params["reference"])
    content = short_digest(params["context"], params["packages"], params["base_reference"])
    return f"localhost/openshell-{params['kind']}:{content}"


def have_base(podman: Podman, params: Dict[str, Any]) -> str:
    """Name of the base image, made if need be."""
    if choose(params["base_source"], params["base_reference"]) == "pull":
        if podman.image_id(params["base_reference"]) is None:
            pull(podman, params["base_reference"])
        return str(params["base_reference"])
    name = f"localhost/openshell-base:{short_digest(params['packages'])}"
    if podman.image_id(name) is None:
        bootstrap(podman, name, params["packages"])
    return name


def build(podman: Podman, params: Dict[str, Any], name: str) -> None:
    base = have_base(podman, params)
    arguments = build_arguments(base, params["packages"], params["upstream_ca_bundle"], params["ulimits"])
    result = podman.run([*arguments, "--tag", name, "-"], stdin=base64.b64decode(params["context"]), check=False)
    if result.rc:
        podman.run(["rmi", "--force", name], check=False)
        raise ModuleFailure(f"building {name} failed: {last_words(result.stderr)}", stderr=result.stderr[-4000:])


def converge(module: AnsibleModule) -> Dict[str, Any]:
    params = module.params
    podman = client(module)
    name = wanted_name(params)
    found = podman.image_id(name)
    changed = found is None
    if changed and not module.check_mode:
        with podman.lock("image-" + params["kind"]):
            found = podman.image_id(name)
            if found is None:
                try:
                    pull(podman, name) if params["reference"] else build(podman, params, name)
                except NoBase as error:
                    raise ModuleFailure(str(error)) from None
                found = podman.image_id(name)
    return {
        "changed": changed,
        "diff": diff({} if changed else {"image": name}, {"image": name}, name),
        "image": name,
        "image_id": found or "",
    }


def main() -> None:
    text = {"type": "str", "default": ""}
    texts = {"type": "list", "elements": "str", "default": []}
    module = new_module(
        {
            "kind": {"type": "str", "choices": ["proxy", "agent"], "required": True},
            "reference": text,
            "context": text,
            "packages": texts,
            "base_source": {"type": "str", "choices": ["auto", "pull", "bootstrap"], "default": "auto"},
            "base_reference": {"type": "str", "default": "docker.io/library/debian:bookworm-slim"},
            "upstream_ca_bundle": text,
            "ulimits": texts,
        }
    )
    run_module(module, lambda: converge(module))


if __name__ == "__main__":
    main()
