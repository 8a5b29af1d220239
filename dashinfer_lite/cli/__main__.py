"""`python -m dashinfer_lite.cli`: the program without its console script."""

from __future__ import annotations

import sys

from dashinfer_lite.cli.main import main

sys.exit(main())
