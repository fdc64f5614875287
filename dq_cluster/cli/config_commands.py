"""`dq-cluster config …`: the settings files that come with the package."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from dq_cluster.errors import NotFoundError

app = typer.Typer(help="List and show the settings files that come with dq-cluster.")

_DEFAULT = "laptop"


@app.command("list")
def list_configs() -> None:
    """List the names that `show` and `--config` take."""
    print("\n".join(_shipped()))


@app.command()
def show(name: Annotated[str, typer.Argument(help="encode, or cluster/encode.")]) -> None:
    """Print a settings file that comes with dq-cluster, as a start for your own."""
    print(find_config(Path(name)).read_text(), end="")


def find_config(path: Path) -> Path:
    """The file `path`, or a shipped one by its name: `cluster/encode`, or `encode` (laptop).

    Raises NotFoundError, with the names there are.
    """
    if path.exists():
        return path
    shipped = _shipped()
    for name in (str(path), f"{_DEFAULT}/{path}"):
        if name in shipped:
            return shipped[name]
    raise NotFoundError(
        f"config file {path} does not exist, and no such one comes with dq-cluster: "
        f"{', '.join(shipped)}"
    )


def _shipped() -> dict[str, Path]:
    """Settings files by name. In a clone they lie beside the package, in a wheel inside it."""
    package = Path(str(files("dq_cluster")))
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {
                str(path.relative_to(folder).with_suffix("")): path
                for path in sorted(folder.glob("*/*.yaml"))
            }
    return {}
