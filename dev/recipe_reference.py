"""Writes docs/recipe.md from the recipe's schema: `python dev/recipe_reference.py`; `--check` only compares."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rbalign.config import endpoints, kinds, recipe, sections, synth
from rbalign.config.recipe import STAGES, Recipe
from rbalign.config.section import Section

TARGET = Path(__file__).parent.parent / "docs" / "recipe.md"
HEAD = """# Every key of a recipe

Written by `python dev/recipe_reference.py` from `src/rbalign/config`. A recipe is one TOML file; each key can also be
given on the command line, `rba run RECIPE --align.beta 0.2`. A stage whose section is absent is not part of the run.
A table that is given keeps the defaults of the keys that it leaves out.
"""


def field_docs() -> dict[tuple[str, str], str]:
    """(class, field) -> the docstring under the field."""
    docs = {}
    for module in (endpoints, kinds, sections, synth, recipe):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                for field, below in zip(node.body, node.body[1:], strict=False):
                    if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                        assert isinstance(field.target, ast.Name)
                        docs[node.name, field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return docs


def own_doc(section: type[Section], name: str, docs: dict[tuple[str, str], str]) -> str:
    """The docstring of a field, from the class that declares it."""
    return next(docs[owner.__name__, name] for owner in section.__mro__ if (owner.__name__, name) in docs)


def kind(annotation: Any) -> str:
    """An annotation in the words of a recipe."""
    origin, args = get_origin(annotation), [arg for arg in get_args(annotation) if arg is not type(None)]
    if origin in (Union, UnionType):
        return " or ".join(kind(arg) for arg in args)
    if origin is Literal:
        return ", ".join(f'`"{arg}"`' for arg in args)
    if origin is tuple:
        return f"list of {kind(args[0])}"
    if origin is dict:
        return "table"
    if origin is not None:  # Annotated: its bounds stand in the field's metadata or are shown by `bounds`
        return " ".join(filter(None, (kind(args[0]), bounds(get_args(annotation)[1].metadata))))
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return f"table, see [{annotation.__name__}](#{annotation.__name__.lower()})"
    return {str: "string", int: "integer", float: "number", bool: "true or false"}[annotation]


def bounds(metadata: Any) -> str:
    """`≥ 1, ≤ 16`, or the pattern of a string."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(rule, name):g}" for rule in metadata for name, sign in signs.items() if hasattr(rule, name)
    ]
    found += [f"like `{rule.pattern}`" for rule in metadata if getattr(rule, "pattern", None)]
    return ", ".join(found)


def default(field: FieldInfo) -> str:
    """The default as TOML would have it; empty for a key that must be given or is absent."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "must be given"
    if value is None:
        return ""
    if isinstance(value, Section):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(changed)}`" if changed else ""
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        return "one, with its defaults"
    return f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


def table(section: type[Section], docs: dict[tuple[str, str], str]) -> str:
    """One class of the schema as a markdown table."""
    lines = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        takes = " ".join(filter(None, (kind(field.annotation), bounds(field.metadata)))).replace("|", "\\|")
        lines.append(f"| `{name}` | {takes} | {default(field)} | {own_doc(section, name, docs)} |")
    return "\n".join(lines)


def inner(section: type[Section]) -> list[type[Section]]:
    """The classes that the fields of a class hold, depth first."""
    found: list[type[Section]] = []

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.extend([annotation, *inner(annotation)])
        for arg in get_args(annotation):
            walk(arg)

    for field in section.model_fields.values():
        walk(field.annotation)
    return list(dict.fromkeys(found))


def reference() -> str:
    """The whole page."""
    docs = field_docs()
    names = {f"{stage.title()}Config": f"[{stage}]" for stage in (*STAGES, "teacher")}
    parts = [HEAD, "## The file\n", table(Recipe, docs)]
    for section in inner(Recipe):
        title = section.__name__ + (f": `{names[section.__name__]}`" if section.__name__ in names else "")
        parts += [
            f'\n<a id="{section.__name__.lower()}"></a>\n## {title}\n',
            inspect.getdoc(section) or "",
            "",
            table(section, docs),
        ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    page = reference()
    if "--check" in sys.argv and TARGET.read_text(encoding="utf-8") != page:
        sys.exit(f"{TARGET} is not current: run python dev/recipe_reference.py")
    if "--check" not in sys.argv:
        TARGET.write_text(page, encoding="utf-8")
