"""`python -m fusile`: the command line."""

from __future__ import annotations

from fusile.cli import main

if __name__ == "__main__":
    main()
