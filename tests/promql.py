"""What a PromQL expression reads: metrics, and what their labels are held to. Evaluates nothing."""

import re
from collections.abc import Iterator
from typing import NamedTuple

GROUPINGS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
KEYWORDS = GROUPINGS | {"and", "or", "unless", "offset", "bool", "inf", "nan", "start", "end"}
TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<range>\[[^\]]*\])
      | (?P<number>\d[\w.]*)
      | (?P<name>[a-zA-Z_:][\w:]*)
      | (?P<mark>=~|!~|!=|==|>=|<=|[-+*/%^=<>(){},@])
      | (?P<space>\s+)""",
    re.VERBOSE,
)


class Reading(NamedTuple):
    """One metric as an expression reads it."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]  # label, operator, value


def tokens(expression: str) -> list[tuple[str, str]]:
    """Return kind and text of each token, blanks left out.

    Raises:
        ValueError: a character that belongs to no token.
    """
    found, at = [], 0
    while at < len(expression):
        match = TOKEN.match(expression, at)
        if not match:
            raise ValueError(f"not PromQL at {at}: {expression[at : at + 20]!r}")
        if match.lastgroup != "space":
            found.append((str(match.lastgroup), match[0]))
        at = match.end()
    return found


def readings(expression: str) -> list[Reading]:
    """Return each metric that is read, with its label matchers, in order."""
    return list(_readings(tokens(expression)))


def groupings(expression: str) -> set[str]:
    """Return the labels of all ``by (…)`` and the like."""
    found, inside = set(), False
    for (_, before), (kind, text) in zip([("", ""), *tokens(expression)], [*tokens(expression), ("", "")], strict=True):
        inside = (inside and text != ")") or (before in GROUPINGS and text == "(")
        if inside and kind == "name":
            found.add(text)
    return found


def _readings(found: list[tuple[str, str]]) -> Iterator[Reading]:
    at = 0
    while at < len(found):
        kind, text = found[at]
        after = found[at + 1][1] if at + 1 < len(found) else ""
        at += 1
        if kind != "name":
            continue
        if text in GROUPINGS and after == "(":
            at = found.index(("mark", ")"), at)
        elif text not in KEYWORDS and after not in {"(", "by", "without"}:  # else it is a function
            end = found.index(("mark", "}"), at) if after == "{" else at
            inside = [one for one in found[at + 1 : end] if one[1] != ","]
            triples = zip(inside[::3], inside[1::3], inside[2::3], strict=True)
            yield Reading(text, tuple((label, sign, value[1:-1]) for (_, label), (_, sign), (_, value) in triples))
            at = end
