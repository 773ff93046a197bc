"""Read a recipe: a packaged name or a TOML file, then `--section.key value` overrides, then the schema's checks.

Not built on pydantic-settings, although it reads TOML and argv: measured with 2.16, `--align.lora r=8` gives the
string "8" and drops the table's other keys, `--align.args.learning_rate 3e-4` is an unknown argument, and an
unknown key is not compared with the known ones. Here an override is a TOML value put at its place in the file's
table, so both sources meet the same checks and the same one-line errors.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rbalign.config.endpoints import ChatEndpoint, JudgeEndpoint, SpeechEndpoint, TeacherEndpoint
from rbalign.config.recipe import STAGES, Recipe
from rbalign.config.section import Section
from rbalign.errors import UsageError, unknown

REFERENCE = "docs/recipe.md"
_UNSET = object()

Endpoint = TypeVar("Endpoint", bound=ChatEndpoint)


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe behind a packaged name ("quickstart") or a TOML file.

    `overrides` are command-line words, `["--align.beta", "0.2", "--eval.limit=8"]`; values are TOML, bare words are
    strings, `a,b` is a list where the key takes several, and `none` empties a key that may be absent.
    Raises UsageError (one line: key, what was given, what is allowed, cure) for anything that does not fit.
    """
    path = recipe_path(path_or_name)
    table = _read_toml(path)
    given = dict(_split_overrides(overrides))
    for key, raw in given.items():
        _put(table, key, raw, path)
    _fill(table, Recipe)
    try:
        text = json.dumps(table)
    except TypeError as error:  # TOML dates and times: no key of a recipe takes one
        raise UsageError(f"{path}: {error}", "write dates and times as quoted strings") from None
    try:
        # Strict, so that `train = "64"` or `beta = true` are errors; from JSON, so that arrays may become tuples.
        return Recipe.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _one_line(error, table, path, given) from None


def load_judge(path: Path) -> JudgeEndpoint:
    """The judge that a TOML file describes: `url`, `model` and the other keys of `JudgeEndpoint`.

    Raises UsageError (one line) for anything that does not fit.
    """
    return _load_endpoint(path, JudgeEndpoint, "docs/protocols.md")


def load_speech_endpoint(path: Path) -> SpeechEndpoint:
    """The speech LLM behind a server that a TOML file describes; UsageError as `load_judge`."""
    return _load_endpoint(path, SpeechEndpoint, "docs/evaluation.md")


def load_teacher_endpoint(path: Path) -> TeacherEndpoint:
    """The text teacher behind a server that a TOML file describes, in the keys of [teacher.endpoint]; UsageError as
    `load_judge`."""
    return _load_endpoint(path, TeacherEndpoint, "docs/endpoints.md")


def _load_endpoint(path: Path, kind: type[Endpoint], page: str) -> Endpoint:
    table = _read_toml(path)
    try:
        return kind.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        raise unknown(f"key in {path}", key, kind.model_fields, f"see {page}")
    if first["type"] == "missing":
        raise UsageError(f"{path}: {key} is missing", f"add the line {key} = ... to it")
    given = _shown([key], json.dumps(table[key], default=str))
    raise UsageError(f"{path}: {key} = {given}; allowed: {_rule(first)}", f"mend it there; see {page}")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with its defaults written out, as TOML that `load_recipe` reads back to an equal recipe.

    Keys that came later (`Section.younger`) stand in it only where they differ from their default.
    """
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def packaged_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    folder = Path(str(resources.files("rbalign") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe_path(path_or_name: str | Path) -> Path:
    """The file of a packaged recipe's name, or the path itself; UsageError if there is no such file."""
    packaged = packaged_recipes()
    text = str(path_or_name)
    if text in packaged:
        return packaged[text]
    path = Path(path_or_name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a recipe", "give a .toml file, or see `rba list recipes`")
    if path.stem in packaged:
        raise UsageError(f"no file {path}", f"the packaged recipe of that name is called `{path.stem}`")
    raise unknown("recipe", text, packaged, "or give the path of a .toml file")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # tomllib names line and column, except where the file ends too early.
        end = f"(at line {len(text.splitlines())}, the end of the file)"
        message = str(error).replace("(at end of document)", end)
        raise UsageError(f"{path} is not valid TOML: {message}", "mend that line") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", "give a .toml file") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from None


# ---- overrides -------------------------------------------------------------------------------------------------


def _split_overrides(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as (dotted key, raw value)."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UsageError(f"unexpected argument {word!r}", "overrides are written --section.key value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                _check_key(key.split("."))  # an unknown key is the likelier mistake than a forgotten value
                raise UsageError(f"--{key} has no value", f"write --{key} VALUE")
            value = rest.pop(0)
        yield key, value


def _check_key(keys: Sequence[str]) -> Any:
    """The annotation of a dotted key; UsageError names the part that the schema does not know."""
    kind: Any = Recipe
    for depth, key in enumerate(keys):
        section = _section_of(kind)
        if section is None:
            if get_origin(kind) is dict:
                return Any
            where = ".".join(keys[:depth])
            raise UsageError(f"{where} is a value, not a table", f"write --{where} VALUE")
        if key not in section.model_fields:
            where = ".".join(keys[:depth])
            what = f"key in [{where}]" if where else "key or section"
            raise unknown(what, key, section.model_fields, f"see {REFERENCE}")
        kind = section.model_fields[key].annotation
    return kind


def _section_of(kind: Any) -> type[Section] | None:
    """The Section class in an annotation such as `SynthConfig | None`, else None."""
    for part in get_args(kind) if _is_union(kind) else (kind,):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _put(table: dict[str, Any], key: str, raw: str, path: Path) -> None:
    """Set one override in the file's table, creating inner tables but no stage that the recipe does not have."""
    keys = key.split(".")
    kind = _check_key(keys)
    if _section_of(kind) is not None:
        raise UsageError(f"{key} is a table", f"set one of its keys: --{key}.KEY VALUE")
    if keys[0] in STAGES and keys[0] not in table:
        raise UsageError(f"--{key}: {path} has no [{keys[0]}] section", f"add the line [{keys[0]}] to it")
    for part in keys[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{path}: {part} = {inner!r} is not a table", f"see {REFERENCE}")
        table = inner
    value = _parse(raw, kind)
    if value is None:
        table.pop(keys[-1], None)
    else:
        table[keys[-1]] = value


def _fill(table: dict[str, Any], section: type[Section]) -> None:
    """A given table keeps the defaults of the keys that it leaves out, also where they are not its class's own.

    Without this, `--eval.sampling.max_new_tokens 16` would silently move the temperature from [eval]'s 0.7 to
    Sampling's 1.0.
    """
    for name, field in section.model_fields.items():
        given = table.get(name)
        if not isinstance(given, dict):
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, Section):
            table[name] = given = default.model_dump(mode="json", exclude_none=True) | given
        if (inner := _section_of(field.annotation)) is not None:
            _fill(given, inner)


def _parse(raw: str, kind: Any) -> Any:
    """A command-line word as the TOML value that the annotation asks for; None for `none` where it is allowed."""
    options = get_args(kind) if _is_union(kind) else (kind,)
    if raw.lower() == "none" and NoneType in options:
        return None
    if any(option is str for option in options):
        return raw
    several = all(get_origin(option) is tuple for option in options if option is not NoneType)
    value = _toml_value(raw)
    if several and not isinstance(value, list):
        return [_toml_word(part.strip()) for part in raw.split(",") if part.strip()]
    return raw if value is _UNSET else value


def _toml_value(raw: str) -> Any:
    """The word as TOML, or _UNSET if it is none."""
    if "\n" in raw:
        return _UNSET
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return _UNSET


def _toml_word(raw: str) -> Any:
    value = _toml_value(raw)
    return raw if value is _UNSET else value


# ---- errors ----------------------------------------------------------------------------------------------------


def _one_line(error: ValidationError, table: Mapping[str, Any], path: Path, overrides: Mapping[str, str]) -> UsageError:
    """The first of pydantic's errors: key path, what was given, what is allowed, the cure."""
    places = [tuple(_known_keys(each)) for each in error.errors()]
    first, keys = error.errors()[0], places[0]
    others = len(set(places)) - 1
    more = f" (and {others} more)" if others else ""
    if first["type"] == "extra_forbidden":
        return _unknown_key(keys, path)
    dotted = _dotted(keys)
    if first["type"] == "missing":
        return UsageError(f"{path}: {dotted} is missing{more}", f"add the line {keys[-1]} = ... to it")
    override = next((key for key in overrides if dotted == key or dotted.startswith((f"{key}.", f"{key}["))), None)
    where = f"--{override}" if override == dotted else f"--{override}: {dotted}" if override else f"{path}: {dotted}"
    cure = f"give --{override} another value" if override else f"mend it there; see {REFERENCE}"
    refused = first.get("ctx", {}).get("error")
    if isinstance(refused, UsageError):  # a check of our own: it says itself what was given and what is allowed
        return UsageError(f"{where}: {refused.problem}{more}", refused.cure or cure)
    # The members of a union each report: "a valid string or a valid array".
    rule = " or ".join(_rule(each) for each, place in zip(error.errors(), places, strict=True) if place == keys)
    given = _shown(keys, json.dumps(_at(table, keys), ensure_ascii=False))
    close = difflib.get_close_matches(given.strip('"'), str(first.get("ctx", {}).get("expected", "")).split("'"), 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UsageError(f"{where} = {given}{more}; allowed: {rule}", hint + cure)


def _shown(keys: Sequence[str | int], given: str) -> str:
    """What was given, unless it may be a key or a password that went to the wrong place."""
    return "(not shown)" if keys[-1] == "key_env" or (keys[-1] == "url" and "@" in given) else given


def _rule(error: ErrorDetails) -> str:
    """What pydantic allows, in the words of a recipe: "Input should be an object" becomes "a table"."""
    rule = error["msg"].removeprefix("Input should be ").removeprefix("String should ")
    return {"an object": "a table"}.get(rule, rule.replace("match pattern", "text that matches"))


def _dotted(keys: Sequence[str | int]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def _at(table: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        table = table[key]
    return table


def _unknown_key(keys: Sequence[str | int], path: Path) -> UsageError:
    kind: Any = Recipe
    for key in keys[:-1]:
        section = _section_of(kind)
        kind = get_args(kind)[0] if section is None else section.model_fields[str(key)].annotation
    section = _section_of(kind)
    where = ".".join(str(key) for key in keys[:-1] if isinstance(key, str))
    fields = section.model_fields if section else {}
    kinds = f"key in [{where}] of {path}" if where else f"key or section in {path}"
    return unknown(kinds, str(keys[-1]), fields, f"see {REFERENCE}")


def _known_keys(error: ErrorDetails) -> list[str | int]:
    """The location without pydantic's marks for the members of a union ('str', 'tuple[str, ...]')."""
    keys: list[str | int] = []
    kind: Any = Recipe
    for part in error["loc"]:
        section = _section_of(kind)
        if section is not None:
            keys.append(part)
            kind = section.model_fields[part].annotation if part in section.model_fields else Any
        elif isinstance(part, int):
            keys.append(part)
            kind = get_args(kind)[0] if get_args(kind) else Any
    return keys
