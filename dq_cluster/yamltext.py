"""YAML whose scalars stay text as written; null, `~`, and nothing are None.

YAML itself guesses: `0012` is ten, `no` is false, and `2024-01-01` a date.
"""

from pathlib import Path
from typing import Any

import yaml

from dq_cluster.errors import ConfigError

_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _TextLoader(yaml.SafeLoader):
    """SafeLoader that guesses no types, and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"'{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return node

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        # JSON writes a character beyond the first 65,536 as two escapes; PyYAML leaves it in two.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


_TextLoader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file. Raises ConfigError, naming the file and the line."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"config file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    if "${oc.env:" in text:
        raise ConfigError(
            f"{path}: ${{oc.env:NAME}} is not filled in any more; give such a value on the command "
            'line: key="$NAME"'
        )
    values = parse(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found a {_kind(values)}")
    return values


def parse(text: str, origin: str) -> Any:
    """The value of `text`: mappings, lists, text, and None. Raises ConfigError."""
    try:
        return yaml.load(text, _TextLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        what = ", ".join(filter(None, (error.context, error.problem)))
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise ConfigError(f"{origin}:{where} {what}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply") from None


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "single value"
