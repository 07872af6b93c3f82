"""Strategies that damage valid files: JSON by its structure, everything else by its bytes."""

import copy
import json
import math

from hypothesis import strategies as st

_RAW = {
    "<infinite>": "1e999",
    "<deep>": "[" * 100_000 + "]" * 100_000,
    "<digits>": "9" * 5_000,
    "<not-utf-8>": '"\udcff"',
    "<twice>": '1, "id": 1, "id": 2',
}
"""Text in a JSON value -> what is written in its place, which Python's own writer would not write."""
_NUMBERS = [
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    255,
    512,
    2**16,
    10**6,
    2**31,
    2**53,
    2**63,
    10**30,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
]
_TEXTS = ["", ".", "..", "/dev/zero", "../" * 99, "a\0b", "a\nb", "\x1b[31m", "\u2028\u202e", "x" * 10_000]

_numbers = st.sampled_from(_NUMBERS) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.sampled_from(_TEXTS) | st.text(max_size=20)
_scalars = _numbers | texts | st.sampled_from([None, True, False, "\ud800", *_RAW])
json_values = _scalars | st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


@st.composite
def mutated(draw, valid):
    """Return a copy of a JSON value in which up to three parts are replaced, deleted or added."""
    root = [copy.deepcopy(valid)]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = _place(draw, root)
        change = draw(st.sampled_from(["alike", "alike", "alike", "copy", "any", "add", "delete"]))
        if change == "delete" and holder is not root:
            del holder[key]
        elif change == "copy":
            source, name = _place(draw, root)
            holder[key] = copy.deepcopy(source[name])
        elif change == "add" and isinstance(holder[key], dict):
            holder[key][draw(texts)] = draw(json_values)
        elif change != "any" and isinstance(holder[key], list):
            holder[key].append(draw(st.sampled_from(holder[key])) if holder[key] else draw(json_values))
        else:
            holder[key] = draw(_alike(holder[key]) if change == "alike" else json_values)
    return root[0]


def _alike(value):
    """Return values of the same kind: those of another are refused too soon to reach far."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return json_values
    return texts if isinstance(value, str) else _numbers


def _place(draw, root):
    """Return a container inside a JSON value, at any depth, and one of its keys; seldom that of the whole."""
    holder, key = root, 0
    while isinstance(holder[key], dict | list) and holder[key]:
        if draw(st.sampled_from(range(40 if holder is root else 8))) == 0:
            break
        holder = holder[key]
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
    return holder, key


def json_bytes(value):
    """Return a JSON value as the content of a file."""
    text = json.dumps(value)
    for marker, raw in _RAW.items():
        text = text.replace(json.dumps(marker), raw)
    return text.encode("utf-8", "surrogateescape")


@st.composite
def json_files(draw, valid):
    """Return contents of a file that once held a JSON value, most of them still JSON."""
    is_json = draw(st.sampled_from([True] * 5 + [False]))
    return json_bytes(draw(mutated(valid))) if is_json else draw(damaged(json_bytes(valid)))


@st.composite
def damaged(draw, valid):
    """Return bytes in which up to three slices are replaced, doubled or cut out; the beginning is hit most often."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, min(len(data), 200)) | st.integers(0, len(data)))
        size = draw(st.sampled_from([0, 1, 2, 4, 8, 100, len(data)]))
        size = min(size, len(data) - start)
        kept = bytes(data[start : start + size])
        fills = [b"", b"\0" * size, b"\xff" * size, b"\x7f" * size, kept * 2]
        data[start : start + size] = draw(st.sampled_from(fills) | st.binary(max_size=9))
    return bytes(data)
