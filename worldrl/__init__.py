"""worldrl: learn a world from logged data, train policies inside it."""

from pathlib import Path as _Path

# In a checkout, models/, planners/ and configs/ stand beside this folder; wheels place them inside.
if (_Path(__file__).parents[1] / "pyproject.toml").is_file():
    __path__.append(str(_Path(__file__).parents[1]))

__version__ = "0.1.0"
