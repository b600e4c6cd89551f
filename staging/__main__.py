"""``python -m staging``: the command line without its script."""

from __future__ import annotations

from staging.cli import main

if __name__ == "__main__":
    main()
