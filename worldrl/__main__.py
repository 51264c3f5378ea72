"""``python -m worldrl``: the same as the command ``worldrl``."""

import sys

from worldrl.cli.main import main

sys.exit(main())
