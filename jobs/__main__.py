"""`python -m jobs …` is `python jobs.pyz …`."""

from __future__ import annotations

import sys

from jobs.main import main

sys.exit(main())
