"""``python -m sparsekern``: the command line, see ``sparsekern.cli``."""

import sys

from .cli import main

sys.exit(main())
