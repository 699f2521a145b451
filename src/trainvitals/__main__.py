"""``python -m trainvitals``."""

import sys

from trainvitals.cli import main

if __name__ == "__main__":
    sys.exit(main())
