"""The site: docs/, the notebooks and what was recorded laid together, and Sphinx called.

`make cookbook` calls it with what it has just run, `make book` (`python -m tools.book`) with the notebooks as they are
committed. The site works from the file system and without a network; nothing in it is loaded from elsewhere.
"""

from tools.book.site import SITE, build

__all__ = ["SITE", "build"]
