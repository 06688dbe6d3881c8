"""The one line that says why a service has nothing to run. It knows the environment and nothing of the conf itself."""

from __future__ import annotations

import os

from torchpar.environment import parse_job_environment
from torchpar.errors import JobSettingsError


def refusal(what: str, why: str, keys: str) -> str:
    """What cannot be run and why, and which keys ("Script=") of which section decide it.

    >>> refusal("/srv/x.py", "no such file", "Script=")
    '/srv/x.py: no such file; set Script= in [Train demo] of torchpar.conf, then: torchpar apply'
    """
    where = section() or "the service's section"
    return f"{what}: {why}; set {keys} in {where} of torchpar.conf, then: torchpar apply"


def section() -> str:
    """The section of the conf that declares this process's service: [Train demo] for torchpar-train@demo.service.

    "" for a job that no section declares.
    """
    try:
        settings = parse_job_environment(os.environ)
    except JobSettingsError:
        settings = None
    template, _, instance = (settings.service if settings else "").partition("@")
    if not instance:
        return ""
    return f"[{template.partition('-')[2].capitalize()} {instance.rpartition('.')[0]}]"
