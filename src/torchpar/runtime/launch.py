"""Start a job that is more than one process: its ranks, by torchrun's agent of the job's own torch.

    PYTHON /usr/lib/torchpar/launch.py -- SCRIPT [ARGUMENT...]
    PYTHON /usr/lib/torchpar/launch.py -m MODULE [ARGUMENT...]

Each rank is started as run.py with the same arguments. Like that file this one is compiled anew at every start; so the
work is in torchpar.runtime.ranks.launcher.
"""

import os
import sys

if __name__ == "__main__":
    folder = os.path.dirname(os.path.abspath(__file__))
    # In front the interpreter has put this folder, or none: nothing of the script's is to be imported here.
    if folder not in sys.path:
        sys.path.append(folder)

    from torchpar.runtime.start.fallback import start_without

    # Its ranks inherit what it has.
    start_without()

    from torchpar.runtime.ranks.launcher import main

    sys.exit(main(os.path.join(folder, "run.py")))
