"""What pyproject.toml can't say: man pages and completions are written when a wheel is built, from
the commands' own parsers, and installed with it. They go to `share` of the environment."""

import sys
from pathlib import Path

from setuptools import setup

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE / "src"), str(_HERE / "scripts")]

from reference.__main__ import write  # noqa: E402 - found where the lines above say

setup(data_files=sorted(write(Path("build", "reference")).items()))
