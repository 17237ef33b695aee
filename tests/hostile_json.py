"""JSON bodies that somebody has tampered with: good ones, and what is done to them, repeatable by a seed."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from service_pictures import base64_text, ink, png

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|[\[\]{},:]|true|false|null')
NASTY = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e308", b"1e-400", b"-0", b"01", b".5", b"1.", b"+1",
    b"9" * 400, b"-" + b"9" * 400, b"9" * 5000, b"0." + b"1" * 4000, b"1e" + b"9" * 30, b"18446744073709551616",
    b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\u0000"', b'"\x01"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"',
    b'"\xf4\x90\x80\x80"', b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\\", b"'", b'"', b"[", b"]", b"{", b"}", b",", b":",
    b"null", b"true", b"[]", b"{}", b"[[]]", b'{"a":{"a":{}}}', b"[" * 300, b"[" * 100_000, b'{"a":' * 20_000,
    b"[" * 200 + b"]" * 200, b'"' + b"A" * 10_000 + b'"', b'"data:image/png;base64,AAAA"', b'"iVBORw0KGgo="',
    b'{"mean":[0],"std":[1]}', b'{"probs":[0.5,0.5]}', b'"__proto__"', b'"${jndi:ldap://x}"', b"/*x*/", b"//x\n",
    b'"constructor"', b'{"z":[[0]],"z":[[1]]}', b"2e-324", b"1E400", b"-1", b"0.5", b"1e16", b"[0,0,0]", b"Inf", b"nan",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 2, 1e6, 1e16, 1e300, 5e-324, 10**30, 10**400, "", "x", "\ud800", "A" * 5000, [], [[]], [[[]]],
    {}, [0.5], [[0.5]], [[[[0.5]]]], [1, [2]], [None], ["AAAA"], {"mean": [0], "std": [0]}, {"probs": [0, 1]}, [0] * 70,
    [[0] * 5] * 70, [[1e20, 0], [0, 1e-20]],
]  # fmt: skip
KEYS = ("z", "images", "mu", "sigma", "p", "q", "mean", "std", "cov", "probs", "from", "to", "steps", "path", "dims")
KEYS = (*KEYS, "low", "high", "", "__class__", "\ud800", "k" * 3000)


def good_bodies(latent_dim: int) -> list[Any]:
    """Return one body of each kind that any route reads; on the other routes they are wrong as they are."""
    z = [[round(0.1 * i, 1) for i in range(latent_dim)], [0] * latent_dim]
    picture, pixels = base64_text(png(ink())), (ink() // 255).tolist()
    normal = {"mean": [0.5, -1], "std": [1, 2]}
    full = {"mean": [0, 1], "cov": [[2, 0.5], [0.5, 1]]}
    return [
        {"z": z},
        {"images": [picture]},
        {"images": [pixels]},
        {"images": ["data:image/png;base64," + picture, [pixels]]},
        {"mu": z, "sigma": (np.ones_like(z) * 0.5).tolist()},
        {"p": normal, "q": full},
        {"p": full, "q": normal},
        {"p": {"probs": [0.25, 0.75]}, "q": {"probs": [0.5, 0.5]}},
        {"from": z[0], "to": z[1], "steps": 3, "path": "linear"},
        {"from": picture, "to": picture, "steps": 2, "path": "spherical"},
        {"z": z[0], "dims": [0, 3], "low": -1, "high": 1, "steps": 2},
    ]


def mutated(bodies: list[Any], seed: int) -> Iterator[bytes]:
    """Yield bodies without an end, each a good one to which something has been done."""
    chance = random.Random(seed)
    while True:
        body = chance.choice(bodies)
        for _ in range(chance.choice((0, 0, 1, 1, 2))):
            body = _changed_tree(body, chance)
        data = json.dumps(body).encode()
        for _ in range(chance.choice((0, 1, 1, 2, 4))):
            data = chance.choice((_changed_token, _changed_bytes))(data, chance)
        yield data


def _changed_tree(body: Any, chance: random.Random) -> Any:
    """Return the value with one part of it replaced, taken out, doubled or renamed."""
    if isinstance(body, dict) and body and chance.random() < 0.9:
        key = chance.choice(list(body))
        copy = dict(body)
        if chance.random() < 0.7:
            copy[key] = _changed_tree(copy[key], chance)
        elif chance.random() < 0.5:
            copy[chance.choice(KEYS)] = copy.pop(key)
        else:
            copy[chance.choice(KEYS)] = chance.choice(VALUES)
        return copy
    if isinstance(body, list) and body and chance.random() < 0.8:
        at, copy = chance.randrange(len(body)), list(body)
        if chance.random() < 0.6:
            copy[at] = _changed_tree(copy[at], chance)
        elif chance.random() < 0.5:
            del copy[at]
        else:
            copy.insert(at, copy[at])
        return copy
    return chance.choice(VALUES)


def _changed_token(data: bytes, chance: random.Random) -> bytes:
    tokens = [match.span() for match in TOKEN.finditer(data)]
    if not tokens:
        return chance.choice(NASTY)
    start, stop = chance.choice(tokens)
    new = chance.choice(NASTY)
    way = chance.randrange(4)
    if way == 0:
        return data[:start] + data[stop:]
    if way == 1:
        return data[:start] + new + data[start:]
    return data[:start] + new + data[stop:]


def _changed_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    way = chance.randrange(4)
    if way == 0:
        return data[:at]
    if way == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if way == 2:
        return data[:at] + chance.randbytes(chance.randrange(1, 5)) + data[at:]
    return data + data[at:]
