"""`python -m resshift_core` is the command `resshift`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
