"""Shows the package's docstrings, which are plain prose with "name: what it is", as Markdown with a list of names."""

import re
from typing import Any

import griffe

# Shapes and mappings ("[b, c, h, w]", "{modality: Raster}") and pages, outside of code.
_SHAPE = re.compile(r"(`[^`]*`)|(\{[^{}]*\}|\[[^\[\]]*\])(?!\()")
_PAGE = re.compile(r"docs/(\w+)\.md(?:, (?:section )?(\d))?")


class PlainDocstrings(griffe.Extension):
    """Rewrites the docstring of every object before it is rendered; sections like "Args:" stay as they are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, names_of(obj))

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if made := re.search(r"default_factory=lambda: (.*?)(?:, \w+=|\)$)", str(attr.value)):
            attr.value = "the paper's" if "PAPER_" in made[1] else made[1]


def names_of(obj: griffe.Object) -> set[str]:
    """What a docstring may explain: parameters of a function, attributes and arguments of a class."""
    if isinstance(obj, griffe.Function):
        return {parameter.name for parameter in obj.parameters}
    if not isinstance(obj, griffe.Class):
        return set()
    made = obj.members.get("__init__")
    arguments = {parameter.name for parameter in made.parameters} if isinstance(made, griffe.Function) else set()
    return arguments | set(obj.members)


def markdown(text: str, names: set[str]) -> str:
    """The text with its explanations of names as a list."""
    return "\n\n".join(_paragraph(part, names) for part in text.split("\n\n"))


def _paragraph(text: str, names: set[str]) -> str:
    if text.startswith("Args:"):
        return text
    lines = _PAGE.sub(_link, _SHAPE.sub(lambda found: found[1] or f"`{found[2]}`", " ".join(text.split())))
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    if not known:
        return lines
    one = rf"\b(?:{known})\b"
    begin = re.compile(rf"(?:^|(?<=[.;] ))({one}(?:, {one})*): |(?<=\. )(?=Raises? |Returns |Source: )")
    found = list(begin.finditer(lines))
    if not any(match[1] for match in found):
        return lines
    ends = [*(match.start() for match in found[1:]), len(lines)]
    blocks = [lines[: found[0].start()].strip()]
    for match, end in zip(found, ends, strict=True):
        body = lines[match.end() : end].strip()
        if not match[1]:
            blocks.append(body)
            continue
        item = f"- {', '.join(f'`{name}`' for name in match[1].split(', '))}: {body.rstrip(';')}"
        if blocks[-1].startswith("- "):
            blocks[-1] += f"\n{item}"
        else:
            blocks.append(item)
    return "\n\n".join(filter(None, blocks))


def _link(found: re.Match[str]) -> str:
    page, section = found[1], found[2]
    return f"[{page}, section {section}]({page}.md)" if section else f"[{page}]({page}.md)"
