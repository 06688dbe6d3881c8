"""The line of `systemctl status` of an inference service."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torchpar.serve.supervisor.member import Member


def make_status(members: Sequence[Member], unbatched: Collection[str], *, started: bool) -> str:
    """Says how many processes are ready, and what keeps the service from its best.

    unbatched: what answers one by one, keyed as `Engine.unbatched` says.
    """
    count = len(members)
    out = [str(member.number) for member in members if member.out]
    narrow = [str(member.number) for member in members if member.narrow]
    models = sorted({key.rpartition("/")[0] for key in unbatched})
    untried = sorted({name for member in members if member.ready for name in member.untried})
    return (
        f"{'serving' if started else 'loading'}: {sum(member.ready for member in members)} of {count}"
        f" process{'es' if count > 1 else ''} ready"
        + (f"; process {', '.join(out)} out, as model files have changed: reload" if out else "")
        + (f"; process {', '.join(narrow)} alone with few compute threads: restart" if narrow else "")
        + (f"; unbatched after a difference: {', '.join(models)}" if models else "")
        + (f"; not tried: {', '.join(untried)}" if untried else "")
    )
