"""Let a pipeline fail where a policy gives away more than a ceiling.

One command does the same:

splitinfer evaluate policy.toml --fail-above personal_data=0.01 --fail-above confirmation=0.05 --fail-above active=0

Whatever stands behind the script's name is handed on: policies, and options such as --quick.
"""

from __future__ import annotations

import sys

from splitinfer.cli.main import main

CEILINGS = ("personal_data=0.01", "confirmation=0.05", "active=0", "store=0")

if __name__ == "__main__":
    asked = sys.argv[1:] or ["public-prefix"]
    gates = [word for ceiling in CEILINGS for word in ("--fail-above", ceiling)]
    sys.exit(main(["evaluate", *asked, *gates]))
