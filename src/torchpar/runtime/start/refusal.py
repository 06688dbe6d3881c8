"""The one line that says why a service has nothing to run. It knows the environment and nothing of the conf itself."""

from __future__ import annotations

import os
import pwd

from torchpar.contract.errors import JobSettingsError
from torchpar.contract.job import parse_job_environment
from torchpar.contract.owners import Stranger


def refusal(what: str, why: str, keys: str) -> str:
    """Words a refusal: what cannot be run, why, and which keys ("Script=") of which section decide it.

    >>> refusal("/srv/x.py", "no such file", "Script=")
    '/srv/x.py: no such file; set Script= in [Train demo] of torchpar.conf, then: torchpar apply'
    """
    where = section() or "the service's section"
    return f"{what}: {why}; set {keys} in {where} of torchpar.conf, then: torchpar apply"


def word_stranger(found: Stranger, user: int) -> str:
    """Words who else can change what the user is to run, and so could run anything as that user."""
    who = f"could run anything as user {_name(user)}"
    if found.is_writable((0, user)):
        return f"everybody may write to {found.place} (mode {found.mode:04o}), and {who}: chmod o-w {found.place}"
    return f"{found.place} belongs to user {_name(found.uid)}, who {who}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def section() -> str:
    """Returns the section that declares this process's service: [Train demo] for torchpar-train@demo.service.

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
