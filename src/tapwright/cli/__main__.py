"""`python -m tapwright.cli`."""

import sys

from tapwright.cli import main

sys.exit(main())
