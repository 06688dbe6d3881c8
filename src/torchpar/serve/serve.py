"""Serve the models of an inference service, as its unit says; or have the server that runs load them again.

    PYTHON /usr/lib/torchpar/serve.py
    PYTHON /usr/lib/torchpar/serve.py reload

The interpreter compiles this file anew at every start, so the work is in torchpar.serve, which it keeps compiled. Any
Python from 3.9 on runs both, whether torchpar is installed for it or not: the link `torchpar` beside this file is the
package.
"""

import os
import sys

if __name__ == "__main__":
    # Last of all: the interpreter's own packages, torch among them, go before.
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != folder] + [folder]

    from torchpar.serve.unit import main

    sys.exit(main(sys.argv[1:]))
