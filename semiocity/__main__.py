"""`python -m semiocity`."""

import sys

from semiocity.cli import main

sys.exit(main())
