"""What `mkdocs build` adds to this folder: pages kept elsewhere in the repository, the table of
every setting, the help of every command, and sections of one page that another page shows too.

`<!-- settings: module.Class -->`, `<!-- commands -->`, and `<!-- section: page.md Title -->` mark
their places.
"""

import inspect
import posixpath
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types as at
import click
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from dq_cluster.cli.main import app
from dq_cluster.config import Settings

ROOT = Path(__file__).parents[1]
# Where a file of the repository stands in the site. Files in docs/ keep their place.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "deploy/helm/dq-cluster/README.md": "reference/chart.md",
}
_SITE = {"README.md": "index.md"} | PAGES
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_SECTION = re.compile(r"<!-- section: (\S+) (.+) -->")
_SETTINGS = re.compile(r"<!-- settings: ([\w.]+)\.(\w+) -->")
_BOUNDS = {at.Ge: ("≥", "ge"), at.Gt: (">", "gt"), at.Le: ("≤", "le"), at.Lt: ("<", "lt")}
_TYPES = {str: "text", int: "whole number", float: "number", bool: "yes or no"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are kept elsewhere."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend links between docs/ and the rest of the repository; fill in what is generated."""
    here = page.file.src_uri
    source = next((path for path, page in PAGES.items() if page == here), f"docs/{here}")
    markdown = _mend_links(markdown, source, here, files)
    if "<!-- commands -->" in markdown:
        command = typer.main.get_command(app)
        blocks = "\n".join(_commands(command, click.Context(command, info_name="dq-cluster")))
        markdown = markdown.replace("<!-- commands -->", blocks)
    markdown = _SETTINGS.sub(
        lambda found: _settings(getattr(import_module(found[1]), found[2])), markdown
    )
    return _SECTION.sub(
        lambda found: _mend_links(_section(found[1], found[2]), f"docs/{found[1]}", here, files),
        markdown,
    )


def _mend_links(markdown: str, source: str, here: str, files: Files) -> str:
    """Links of the file `source` of the repository, as links of the page `here` of the site."""

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = _SITE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            return text  # a file of the repository that the site does not show
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(here))}{anchor or ''})"

    return _LINK.sub(link, markdown)


def _section(page: str, title: str) -> str:
    """What stands below a heading of a page in this folder, up to the next of its level."""
    text = (ROOT / "docs" / page).read_text()
    return re.split(r"^## ", text.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def _commands(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, click.Context(child, info_name=name, parent=context))


def _settings(kind: type[Settings]) -> str:
    rows = "\n".join(f"| `{name}` | {' | '.join(cells)} |" for name, *cells in _rows(kind))
    texts = "\n\n".join(_texts(kind, ""))
    return f"{texts}\n\n| setting | meaning | type | default |\n|---|---|---|---|\n{rows}\n"


def _split(kind: type[Settings]) -> tuple[str, dict[str, str]]:
    """The docstring of `kind`: the text about the whole, and what it says of each field.

    A docstring describes fields as `name: text.` or `name, name: text;`.
    """
    names = "|".join(kind.model_fields)
    described = re.compile(rf"(?:^|(?<=[.;:)] ))((?:{names})(?:(?:, | and )(?:{names}))*): ")
    whole, meanings = [], {}
    for paragraph in inspect.cleandoc(kind.__doc__ or "").split("\n\n"):
        text, *fields = described.split(" ".join(paragraph.split()))
        if text.strip():
            whole.append(text.strip())
        for found, meaning in zip(fields[::2], fields[1::2], strict=True):
            for name in re.split(", | and ", found):
                meanings[name] = meaning.strip(" ;.")
    return "\n\n".join(whole), meanings


def _texts(kind: type[Settings], prefix: str) -> Iterator[str]:
    text, _ = _split(kind)
    if prefix:
        text = f"**`{prefix.rstrip('.')}`**: {text}"
    yield text
    for name, field in kind.model_fields.items():
        if group := _group(field):
            yield from _texts(group, f"{prefix}{name}.")


def _rows(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    _, meanings = _split(kind)
    for name, field in kind.model_fields.items():
        if group := _group(field):
            yield from _rows(group, f"{prefix}{name}.")
        else:
            what = ", ".join([_type(field.annotation), *_bounds(field.metadata)])
            meaning = field.description or meanings.get(name, "")
            yield prefix + name, meaning.replace("|", "\\|"), what, _default(field)


def _group(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _type(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if get_origin(kind) is tuple:
        return f"list of {_type(arguments[0])}"
    if kind in _TYPES:
        return _TYPES[kind]
    if isinstance(kind, type) and issubclass(kind, Settings):
        return "group of " + ", ".join(f"`{name}`" for name in kind.model_fields)
    chosen = [a for a in arguments if a is not type(None) and not hasattr(a, "gt")]
    if get_origin(kind) is not None and hasattr(kind, "__metadata__"):
        return _type(arguments[0])
    return " or ".join(_type(argument) for argument in chosen)


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for bound in metadata:
        if type(bound) in _BOUNDS:
            sign, name = _BOUNDS[type(bound)]
            yield f"{sign} {getattr(bound, name):,}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return "none" if default in (None, []) else f"`{default}`".replace("'", "")
