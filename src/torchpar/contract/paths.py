"""Names torchpar's own files: units, jobs, torchpard and commands find each other by them."""

from __future__ import annotations

# What units run; an installed unit has these paths in it. run.py becomes the script, so that no process of torchpar
# stays above it; launch.py stays above several ranks, each of which it starts by run.py. stop is ExecStop=, and guard
# looks at the files that systemd opens as root.
PROGRAMS = "/usr/lib/torchpar"
RUN = f"{PROGRAMS}/run.py"
LAUNCH = f"{PROGRAMS}/launch.py"
SERVE = f"{PROGRAMS}/serve.py"
STOP = f"{PROGRAMS}/stop"
GUARD = f"{PROGRAMS}/guard"

# The names under which the server finds its certificate and key in $CREDENTIALS_DIRECTORY.
CERTIFICATE, KEY = "tls-certificate", "tls-key"

TEMPLATES = "/usr/share/torchpar/templates"

# Generations, and the link to the one in force.
STORE = "/var/lib/torchpar"

# torchpard's sockets: its state, and the same for root alone, as the other may have a thousand others waiting at it.
STATUS_SOCKET = "/run/torchpar/torchpard.sock"
ROOT_STATUS_SOCKET = "/run/torchpar/root.sock"

# In it a file for each running service that may be moved, named as its unit, with the CPUs that torchpard gives it now.
GIVEN = "/run/torchpar/given"

# What torchpard has done for services that cannot be placed as planned. Not in its RuntimeDirectory=, which is removed
# when it is stopped: the way back would be lost.
FALLBACK = "/run/torchpar-fallback/services"

# In it a folder for each running service, named as its unit without ".service", with what its ranks say.
JOBS = "/run/torchpar-jobs"
