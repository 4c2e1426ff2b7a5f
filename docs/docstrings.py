"""Prepares the library's docstrings for mkdocstrings: an extension of Griffe."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Gives sections of docstrings the form that Griffe reads."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of `obj` before it is parsed."""
        if obj.docstring is not None:
            text = separate_names(obj.docstring.value)
            obj.docstring.value = head_examples(text)


def separate_names(text: str) -> str:
    """Repeats a description that several arguments share, `a, b: description`, for each."""
    entry = re.compile(r"^( +)(\w+(?:, \w+)+)(:.*\n?(?:\1 +.*\n?)*)", re.M)

    def separate(match: re.Match[str]) -> str:
        described = match[3].rstrip("\n")
        return "\n".join(f"{match[1]}{name}{described}" for name in match[2].split(", ")) + "\n"

    head, args, tail = text.partition("Args:\n")
    arguments, blank, rest = re.split(r"(^\n|^(?=\S)|\Z)", tail, maxsplit=1, flags=re.M)
    return f"{head}{args}{entry.sub(separate, arguments)}{blank}{rest}" if args else text


def head_examples(text: str) -> str:
    """Makes `Example:` the heading `Examples:`, and gives it to examples without one."""
    text = re.sub(r"^Example:", "Examples:", text, flags=re.M)
    return re.sub(
        r"^>>> (?:.+\n?)*", lambda match: "Examples:\n" + re.sub("^", "  ", match[0], flags=re.M),
        text, flags=re.M,
    )  # fmt: skip
