"""``python -m staging``: the same as ``sentinode``."""

from __future__ import annotations

from staging.cli import main

if __name__ == "__main__":
    main()
