"""Reports people read: tables, figures, and picture grids, as one HTML file and as Markdown."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from io import BytesIO
from itertools import chain

import jinja2
from PIL import Image

from dq_cluster.storage import Storage

THUMBNAIL = 96  # pixels a side; enough to judge a neighbour, small enough to embed hundreds


@dataclass(frozen=True)
class Picture:
    """One picture of a grid: encoded image bytes, a caption, and whether it is a right answer.

    `relevant` is None where nothing says so (a query, or pictures without labels).
    """

    data: bytes
    caption: str
    relevant: bool | None = None

    @cached_property
    def thumbnail(self) -> bytes:
        """A PNG of at most THUMBNAIL pixels a side."""
        with Image.open(BytesIO(self.data)) as opened:
            image = opened.convert("RGB")
            scale = THUMBNAIL / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            buffer = BytesIO()
            image.resize(size).save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def source(self) -> str:
        """A data URI of the thumbnail."""
        return f"data:image/png;base64,{base64.b64encode(self.thumbnail).decode()}"


@dataclass(frozen=True)
class GridRow:
    """A query and its neighbours, best first."""

    query: Picture
    neighbours: Sequence[Picture]


@dataclass(frozen=True)
class Report:
    """A title, what was measured and how, and what it looks like.

    tables: title to rows, each a mapping with the same keys; figures: title to SVG markup;
    grids: title to rows.
    """

    title: str
    summary: str
    tables: Mapping[str, Sequence[Mapping[str, object]]] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    grids: Mapping[str, Sequence[GridRow]] = field(default_factory=dict)

    def to_html(self) -> str:
        """The whole report as one HTML document that needs nothing else."""
        return _template("report.html").render(report=self)

    def write(self, folder: Storage) -> None:
        """Write report.html, and report.md with its figures and pictures beside it."""
        folder.write("report.html", self.to_html().encode())
        figures = {title: f"figures/{n}.svg" for n, title in enumerate(self.figures)}
        for title, name in figures.items():
            folder.write(name, self.figures[title].encode())
        pictures: dict[bytes, str] = {}
        for row in chain.from_iterable(self.grids.values()):
            for picture in (row.query, *row.neighbours):
                if picture.data not in pictures:
                    pictures[picture.data] = f"pictures/{len(pictures)}.png"
                    folder.write(pictures[picture.data], picture.thumbnail)
        text = _template("report.md").render(report=self, figures=figures, pictures=pictures)
        folder.write("report.md", text.encode())


def _template(name: str) -> jinja2.Template:
    text = files("dq_cluster.evaluate").joinpath(f"templates/{name}").read_text()
    environment = jinja2.Environment(
        autoescape=name.endswith(".html"), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.from_string(text)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
