# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Host patterns (spec 1.9): exact names, ``*`` within one label, ``**`` as first label for one label or more."""

from __future__ import annotations

import re


class HostPatternError(ValueError):
    """A wildcard where none may stand."""


def check_host_pattern(pattern: str) -> None:
    """Refuse patterns that are too broad or malformed; names without ``*`` are compared literally and pass."""
    if not pattern.isascii() or any(char.isspace() for char in pattern) or "@" in pattern or "/" in pattern:
        raise HostPatternError(f"host '{pattern}' is not a host name, address or wildcard")
    if "*" not in pattern:
        if pattern.endswith("."):
            raise HostPatternError(f"host '{pattern}' ends with a dot; leave it out")
        return
    labels = pattern.split(".")
    if pattern in ("*", "**"):
        raise HostPatternError(f"host wildcard '{pattern}' matches everything; name a domain")
    if len(labels) <= 2:
        raise HostPatternError(f"TLD wildcard '{pattern}' is not allowed; use subdomain wildcards like '*.example.com'")
    if "" in labels or any(char in pattern for char in "?[]{}\\"):
        raise HostPatternError(f"invalid host wildcard '{pattern}': empty labels and ? [ {{ are not possible")
    if "**" in labels[0] and labels[0] != "**":
        raise HostPatternError(f"invalid host wildcard '{pattern}': ** must be the complete first label")
    for label in labels[1:]:
        if "*" in label and label != "*":
            raise HostPatternError(f"invalid host wildcard '{pattern}': after the first label * must be a whole label")


def compile_host_pattern(pattern: str) -> re.Pattern[str]:
    """The expression for a wildcard pattern, to be matched against a lower-case host without a trailing dot."""
    labels = pattern.lower().split(".")
    out = []
    for index, label in enumerate(labels):
        if label == "**" and index == 0:
            out.append(r"[^.]+(?:\.[^.]+)*")
        elif label == "*":
            out.append(r"[^.]+")
        else:
            out.append("[^.]*".join(re.escape(part) for part in label.split("*")))
    return re.compile(r"\.".join(out))


def patterns_overlap(left: str, right: str) -> bool:
    """Whether one host could match both; an empty pattern (hostless endpoint) matches any.

    For two wildcards the answer errs towards yes: it only makes the ambiguity check stricter.
    """
    left, right = left.lower(), right.lower()
    if not left or not right or left == right:
        return True
    if "*" not in left and "*" not in right:
        return False
    if "*" not in left:
        return compile_host_pattern(right).fullmatch(left) is not None
    if "*" not in right:
        return compile_host_pattern(left).fullmatch(right) is not None
    return _labels_overlap(left.split(".")[::-1], right.split(".")[::-1])


def _labels_overlap(left: list[str], right: list[str]) -> bool:
    """Compare two wildcards label by label from the right."""
    for index in range(max(len(left), len(right))):
        one = left[index] if index < len(left) else None
        other = right[index] if index < len(right) else None
        if one == "**" or other == "**":
            return True
        if one is None or other is None:
            return False
        if "*" not in one and "*" not in other and one != other:
            return False
        if "*" in one and "*" not in other and compile_host_pattern(one).fullmatch(other) is None:
            return False
        if "*" in other and "*" not in one and compile_host_pattern(other).fullmatch(one) is None:
            return False
    return True
