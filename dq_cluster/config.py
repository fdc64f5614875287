"""Configuration: one YAML file and dotted overrides become one validated, immutable object.

Each workload defines its own settings next to the code that uses them, as subclasses of
`Settings`; this module only knows how to load them. What the user wrote stays text until the type
of its setting says what it is: `run=20240101` and `label: no` are text where the setting is text.
"""

import itertools
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from dq_cluster.errors import ConfigError, InputError
from dq_cluster.location import absolute, absolute_prefix
from dq_cluster.yamltext import parse, read_mapping

_MOST_PROBLEMS = 5
_SCALARS: dict[Any, TypeAdapter[Any]] = {
    int: TypeAdapter(int),
    float: TypeAdapter(float),
    bool: TypeAdapter(bool),
}
# What pydantic says of a value of another kind than a union's other members would accept.
_WRONG_KIND = {"model_type", "int_type", "float_type", "bool_type"}
_UNKNOWN = {"extra_forbidden", "invalid_key"}


class Settings(BaseModel):
    """Base of every settings class: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _checked(make: Callable[[str], str]) -> AfterValidator:
    def check(text: str) -> str:
        try:
            return make(text)
        except InputError as error:  # pydantic says for which setting, and knows ValueError only
            raise ValueError(str(error)) from None

    return AfterValidator(check)


Location = Annotated[str, _checked(absolute)]
"""A local path, made absolute where it is read, or an `s3://` URI."""

LocationPrefix = Annotated[str, _checked(absolute_prefix)]
"""The beginning of locations or http(s) addresses; a local one is made absolute likewise."""

S = TypeVar("S", bound=Settings)


def load_settings(
    kind: type[S], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> S:
    """Read `path` (YAML), apply `overrides` (`key.sub=value`), and validate as `kind`.

    docs/decisions/0003-settings.md says how a value is written. Raises ConfigError for a missing
    file, bad YAML, overrides that contradict each other, an unknown key, or a wrong value.
    """
    stored = {} if path is None else read_mapping(path)
    given: dict[str, Any] = {}
    for override in overrides:
        _enter(kind, given, override)
    origins = [*([str(path)] if path is not None else []), *(["command line"] if given else [])]
    values = _shaped(kind, _merged(stored, given))
    return validate_settings(kind, values, " and ".join(origins) or "command line")


def validate_settings(kind: type[S], values: object, origin: str) -> S:
    """Validate plain `values` as `kind`; `origin` names their source in the error."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_one_line(kind, error)}") from None


def _enter(kind: type[Settings], given: dict[str, Any], override: str) -> None:
    """Put one override into the tree `given`; of two for the same setting the last counts."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(
            f"'{override}' is not KEY=VALUE; a file of settings is given with --config FILE"
        )
    annotation: Any = kind
    node, (*groups, name) = given, key.split(".")
    for part in groups:
        node, annotation = node.setdefault(part, {}), _field(annotation, part)
        if not isinstance(node, dict):
            raise _conflict(key, part)
    value = _parsed(_field(annotation, name), text, key)
    before = node.get(name)
    if name in node and isinstance(before, dict) != isinstance(value, dict):
        raise _conflict(key, name)
    node[name] = _merged(before, value)


def _conflict(key: str, part: str) -> ConfigError:
    return ConfigError(
        f"command line: '{key}' contradicts another override of '{part}': give its value, or "
        "settings in it, not both"
    )


def _merged(below: Any, above: Any) -> Any:
    """`above` over `below`: mappings key by key, everything else as a whole."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {name: _merged(below.get(name), value) for name, value in above.items()}


def _parsed(annotation: Any, text: str, key: str) -> Any:
    """The value of an override: text, or where lists or groups are settings what YAML makes of it.

    None unsets what may be unset.
    """
    arms = _arms(annotation)
    if types.NoneType in arms and (not text or (str not in arms and text in ("null", "~"))):
        return None
    if str in arms or not any(_is_group(arm) or _is_list(arm) for arm in arms):
        return text
    if text.lstrip()[:1] in ("[", "{"):
        return parse(text, f"command line: '{key}'")
    return [] if not text and any(map(_is_list, arms)) else text


def _shaped(annotation: Any, value: Any) -> Any:
    """`value`, whose scalars are text, in the types of `annotation`.

    A single value is a list of one where a list is asked for. What does not fit stays as it is,
    for pydantic to name.
    """
    arms = _arms(annotation)
    if isinstance(value, dict):
        fields = _fields(annotation)
        return {
            name: _shaped(fields[name].annotation, each) if name in fields else each
            for name, each in value.items()
        }
    if elements := next((get_args(arm) for arm in arms if _is_list(arm)), None):
        if isinstance(value, str) and str not in arms:
            value = [value]
        if isinstance(value, list):
            repeated = elements[-1] is Ellipsis
            return [
                _shaped(elements[0] if repeated else elements[min(n, len(elements) - 1)], each)
                for n, each in enumerate(value)
            ]
    if not isinstance(value, str) or str in arms:
        return value
    for arm in arms:
        kind = type(get_args(arm)[0]) if get_origin(arm) is Literal else arm
        if kind in _SCALARS:
            try:
                return _SCALARS[kind].validate_python(value)
            except ValidationError:
                continue
    return value


def _arms(annotation: Any) -> list[Any]:
    """The types that a union may be; one for any other type."""
    if get_origin(annotation) is Annotated:
        return _arms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [arm for each in get_args(annotation) for arm in _arms(each)]
    return [annotation]


def _is_group(arm: Any) -> bool:
    return isinstance(arm, type) and issubclass(arm, BaseModel)


def _is_list(arm: Any) -> bool:
    return get_origin(arm) is tuple


def _fields(annotation: Any) -> Mapping[str, Any]:
    """The settings in a group, by name; none where `annotation` is no group."""
    group = next(filter(_is_group, _arms(annotation)), None)
    return group.model_fields if group else {}


def _field(annotation: Any, name: Any) -> Any:
    """The type of the setting `name` in a group; None where there is none."""
    field = _fields(annotation).get(name)
    return field and field.annotation


def _one_line(kind: type[Settings], error: ValidationError) -> str:
    problems = [(item, *_place(kind, item)) for item in error.errors(include_url=False)]
    told = {
        name
        for item, where, _ in problems
        if item["type"] not in _WRONG_KIND
        for name in itertools.accumulate(where.split("."), "{}.{}".format)
    }
    # Of a union, the member that the value was not meant for has nothing to say.
    lines = dict.fromkeys(
        _problem(where, group, item)
        for item, where, group in problems
        if item["type"] not in _WRONG_KIND or where not in told
    )
    more = len(lines) - _MOST_PROBLEMS
    return "; ".join(list(lines)[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _problem(where: str, group: Any, item: Any) -> str:
    match item["type"]:
        case "extra_forbidden":
            keys = ", ".join(sorted(_fields(group)))
            return f"unknown key '{where}'" + (f" (known: {keys})" if keys else "")
        case "missing":
            return f"'{where}' is required"
        case "value_error":  # of our own validators, which say what they found
            return f"'{where}': {item['ctx']['error']}"
        case "model_type":
            message = f"expected a group of settings: {', '.join(_fields(group))}"
        case _:
            message = item["msg"]
    given = "null" if item["input"] is None else reprlib.repr(item["input"])
    return f"'{where}': {message}, got {given}"


def _place(kind: type[Settings], item: Any) -> tuple[str, Any]:
    """The dotted name of the setting that `item` is about, and the type of it or, for an unknown
    one, of its group. pydantic's names for the members of a union are left out.
    """
    *outer, last = item["loc"] or ("",)
    names, annotation = [], kind
    for part in (*outer, last):
        if part in _fields(annotation):
            names.append(str(part))
            annotation = _field(annotation, part)
        elif isinstance(part, int) or (part is last and item["type"] in _UNKNOWN):
            names.append(str(part))
    return ".".join(names) or kind.__name__, annotation
