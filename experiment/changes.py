"""Which settings differ, by their whole names, with both values."""

import json
from collections.abc import Mapping
from typing import Any

from command.files import shown

__all__ = ["changes"]

_LONGEST = 60
"""Letters of a value."""


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two nested mappings of JSON values, each as `name: old -> new`."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changes(before, after, f"{prefix}{key}.")
        elif json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
            values = (_text(mapping[key]) if key in mapping else "none" for mapping in (old, new))
            found.append(f"{prefix}{key}: {' -> '.join(values)}")
    return found


def _text(value: Any) -> str:
    text = shown(json.dumps(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
