"""Configuration: one YAML file and dotted overrides become one validated, immutable object.

Each workload defines its own settings next to the code that uses them, as subclasses of
`Settings`; this module only knows how to load them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError

from dq_cluster.errors import ConfigError


class Settings(BaseModel):
    """Base of every settings class: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def load_settings(
    kind: type[S], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> S:
    """Read `path` (YAML), apply `overrides` (`key.sub=value`), and validate as `kind`.

    Raises ConfigError for a missing file, bad YAML, an unknown key, or a wrong value.
    """
    origin = str(path) if path is not None else "command line"
    try:
        stored = yaml.safe_load(Path(path).read_text()) or {} if path is not None else {}
        if not isinstance(stored, dict):
            raise ConfigError(
                f"{origin}: expected a mapping of settings, found {type(stored).__name__}"
            )
        merged = OmegaConf.merge(OmegaConf.create(stored), OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{origin}: {' '.join(str(error).split())}") from error
    return validate_settings(kind, values, origin)


def validate_settings(kind: type[S], values: object, origin: str) -> S:
    """Validate plain `values` as `kind`; `origin` names their source in the error."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_one_line(kind, error)}") from None


def _one_line(kind: type[Settings], error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or kind.__name__
        if item["type"] == "extra_forbidden":
            known = ", ".join(_fields_at(kind, item["loc"][:-1]))
            problems.append(f"unknown key '{where}'" + (f" (known: {known})" if known else ""))
        elif item["type"] == "missing":
            problems.append(f"'{where}' is required")
        else:
            problems.append(f"'{where}': {item['msg']}, got {item['input']!r}")
    return "; ".join(problems)


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names a key at `location` could have had; empty where that is not one class."""
    for part in location:
        field = kind.model_fields.get(str(part))
        nested = field.annotation if field else None
        if not (isinstance(nested, type) and issubclass(nested, BaseModel)):
            return []
        kind = nested
    return sorted(kind.model_fields)
