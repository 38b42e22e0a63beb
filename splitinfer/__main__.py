"""`python -m splitinfer`."""

import sys

from splitinfer.cli.main import main

sys.exit(main())
