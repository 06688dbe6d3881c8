"""Run a job's script as __main__, the way `python SCRIPT` does, and set torch as planned when the script imports it.

    PYTHON /usr/lib/torchpar/run.py -- SCRIPT [ARGUMENT...]
    PYTHON /usr/lib/torchpar/run.py -m MODULE [ARGUMENT...]

The interpreter compiles this file anew at every start, before the script's first line; so the work is in
torchpar.runtime.start.script, which it keeps compiled. Any Python from 3.9 on runs both, whether torchpar is installed
for it or not: the folder `python` beside this file holds the package, and nothing else.
"""

import os
import sys

if __name__ == "__main__":
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python")
    if not os.path.isdir(folder):  # not installed: the package itself is beside this file
        folder = os.path.dirname(folder)
    # Last of all: what the script itself can import goes before. It stays there, for `import torchpar.runtime`, and any
    # Python that the script starts finds it too.
    if folder not in sys.path[1:]:
        sys.path.append(folder)
    paths = os.environ.get("PYTHONPATH", "")
    if folder not in paths.split(os.pathsep):
        os.environ["PYTHONPATH"] = paths + os.pathsep + folder if paths else folder

    from torchpar.runtime.start.script import main

    main()
