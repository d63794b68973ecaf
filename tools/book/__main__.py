"""`make book`: the site from the notebooks as they are committed, without running them."""

from __future__ import annotations

import argparse
import sys
import time

from make import BUILD, ROOT, minutes, only_one, say
from tools.book import build
from tools.cookbook import selected

BOOK = BUILD / "book"


def main(arguments: list[str]) -> int:
    """Build build/book; returns the exit status, which is 0 when the site is whole."""
    argparse.ArgumentParser(prog="make.py book", description=__doc__).parse_args(arguments)
    start = time.monotonic()
    with only_one("book"):
        first = build({path.stem: None for path in selected([])}, ROOT / "notebooks", site=BOOK)
    say(f"the site, after {minutes(time.monotonic() - start)}: {first}" if first else "the site could not be built")
    return int(first is None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
