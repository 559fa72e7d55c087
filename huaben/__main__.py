"""``python -m huaben`` is the ``huaben`` command."""

import sys

from huaben.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
