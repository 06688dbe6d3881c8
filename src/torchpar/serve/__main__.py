"""`python3 -m torchpar.serve`."""

import sys

from torchpar.serve.main import main

sys.exit(main(sys.argv[1:]))
