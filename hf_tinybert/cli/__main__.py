"""`python -m hf_tinybert.cli`, which `accelerate launch -m` and `torchrun -m` start too."""

import sys

from . import main

sys.exit(main())
