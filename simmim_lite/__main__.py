"""`python -m simmim_lite` from a checkout is the same as `simmim-lite`."""

from .cli import main

raise SystemExit(main())
