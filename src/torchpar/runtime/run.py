"""Run a job's script as __main__, the way `python SCRIPT` does, and set torch as planned when the script imports it.

    PYTHON /usr/lib/torchpar/run.py -- SCRIPT [ARGUMENT...]
    PYTHON /usr/lib/torchpar/run.py -m MODULE [ARGUMENT...]

The interpreter compiles this file anew at every start, before the script's first line; so the work is in
torchpar.runtime.script, which it keeps compiled. Any Python from 3.9 on runs both, whether torchpar is installed for it
or not: the link `torchpar` beside this file is the package.
"""

import os
import sys

if __name__ == "__main__":
    # Last of all: what the script itself can import goes before. It stays there, for `import torchpar.runtime`.
    folder = os.path.dirname(__file__)
    if folder not in sys.path[1:]:
        sys.path.append(folder)

    from torchpar.runtime.script import main

    main()
