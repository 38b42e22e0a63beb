"""Renders the chat template once and cuts it at the segments: roles -> the literals between the texts; both sides.

No text is ever rendered: each segment is stood in for by a sentinel, so a template sees roles and nothing else. Nor
does it see the clock: to a template that writes the date (`strftime_now`, as Llama 3's does) it is always midnight of
26 July 2024, the date that Llama 3's falls back to, so that every day and both sides get the same literals.
"""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from splitinfer.errors import TemplateError
from splitinfer.handoff import Role

__all__ = ["literals"]

_Message = dict[str, str]
_JOIN = "\n\n"
# Friday, 26 July 2024, 00:00:00; another directive stays as it is.
_DATE_FIELDS = {
    **{"%d": "26", "%m": "07", "%Y": "2024", "%y": "24", "%B": "July", "%b": "Jul", "%A": "Friday", "%a": "Fri"},
    **{"%-d": "26", "%e": "26", "%-m": "7", "%H": "00", "%I": "12", "%M": "00", "%S": "00", "%p": "AM"},
}
_REPLACE = "".join(f" | replace('{directive}', '{text}')" for directive, text in _DATE_FIELDS.items())
# The newline is eaten by trim_blocks, so the template still begins at the start of a line.
_PINNED_DATE = f"{{% macro strftime_now(form) %}}{{{{ form{_REPLACE} }}}}{{% endmacro %}}\n"
# A role that no template knows by name.
_UNKNOWN_ROLE = "qzunknownrole"


def literals(tokenizer: PreTrainedTokenizerBase, roles: Sequence[Role], *, texts: Sequence[str] = ()) -> list[str]:
    """Return len(roles) + 1 literals: the one before each segment, then the trailing one.

    Without a chat template the segments are joined by blank lines, and a newline ends the prompt. Raises TemplateError
    where the template refuses the roles, or drops, repeats, reorders or rewrites a segment.
    """
    if not tokenizer.chat_template:
        return ["", *[_JOIN] * (len(roles) - 1), "\n"]
    sentinels = _sentinels(len(roles), texts)
    rendered = _render(tokenizer, _messages(tokenizer, roles, sentinels))
    return _cut(rendered, sentinels)


def _sentinels(count: int, texts: Sequence[str]) -> list[str]:
    # Mixed case and of some length, so that a filter that changes case, trims or truncates is seen.
    for attempt in range(1 << 16):
        stem = f"QzSegmentStandIn{attempt:05d}"
        if not any(stem in text for text in texts):
            return [f"{stem}x{index:06d}OfTheOrdinaryKindForCutting{index:06d}zQ" for index in range(count)]
    raise TemplateError("no stand-in string could be found that the texts do not contain")


def _cut(rendered: str, sentinels: Sequence[str]) -> list[str]:
    pieces, position = [], 0
    for number, sentinel in enumerate(sentinels, 1):
        count = rendered.count(sentinel)
        if count != 1:
            what = "drops or rewrites" if count == 0 else "repeats"
            raise TemplateError(f"the chat template {what} segment {number} of {len(sentinels)}")
        start = rendered.index(sentinel)
        if start < position:
            raise TemplateError(f"the chat template reorders segment {number} of {len(sentinels)}")
        pieces.append(rendered[position:start])
        position = start + len(sentinel)
    return [*pieces, rendered[position:]]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[_Message]) -> str:
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _PINNED_DATE + template
        rendered = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
        raise TemplateError("the chat template refuses these segments or cannot be rendered") from error
    return str(rendered)


def _messages(tokenizer: PreTrainedTokenizerBase, roles: Sequence[Role], sentinels: Sequence[str]) -> list[_Message]:
    names = _role_names(tokenizer)
    messages: list[_Message] = []
    for role, sentinel in zip(roles, sentinels, strict=True):
        name = "assistant" if role is Role.ANSWER else names.get(role, "user")
        # Many templates demand that turns alternate, so neighbouring texts of the user share one.
        if messages and name == messages[-1]["role"] == "user":
            messages[-1]["content"] += _JOIN + sentinel
        else:
            messages.append({"role": name, "content": sentinel})
    return messages


def _role_names(tokenizer: PreTrainedTokenizerBase) -> dict[Role, str]:
    if not _knows(tokenizer, "note"):
        return {Role.DOCUMENT: "document"} if _knows(tokenizer, "document") else {}
    return {Role.NOTE: "note", Role.DOCUMENT: "document" if _knows(tokenizer, "document") else "system"}


def _knows(tokenizer: PreTrainedTokenizerBase, role: str) -> bool:
    """Tell whether the template names this role: it accepts it, and treats it otherwise than an unknown role."""
    probe = _probe(tokenizer, role)
    if probe is None:
        return False
    other = _probe(tokenizer, _UNKNOWN_ROLE)
    return other is None or [piece.replace(_UNKNOWN_ROLE, role) for piece in other] != probe


def _probe(tokenizer: PreTrainedTokenizerBase, role: str) -> list[str] | None:
    sentinels = _sentinels(2, ())
    messages = [{"role": role, "content": sentinels[0]}, {"role": "user", "content": sentinels[1]}]
    try:
        return _cut(_render(tokenizer, messages), sentinels)
    except TemplateError:
        return None
