"""A decoder with bugs, in real processes: some pictures are the end of Pillow's reader of PPM.

Python runs `sitecustomize` when it starts, so every process that has the folder of `install` on
its PYTHONPATH has the bugs: workers of Ray and their children too.
"""

from pathlib import Path

KILLER, HANGER, GLUTTON = (b"P6\n# %b\n8 8\n255\n" % what for what in (b"kill", b"hang", b"eat"))

_BUGS = """
import os, re, signal
from PIL import PpmImagePlugin

def _open(self):
    data = self.fp.read()
    if b"kill" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"hang" in data:
        re.match("(a+)+$", "a" * 64 + "b")  # for ages, and without letting go of the interpreter
    raise MemoryError

PpmImagePlugin.PpmImageFile._open = _open
"""


def install(folder: Path) -> str:
    """Write the bugs; returns the PYTHONPATH that brings them."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_BUGS)
    return str(folder)
