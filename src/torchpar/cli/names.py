"""Names of services and numbers of generations as arguments: the shell completes them from what is in force."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

from torchpar.contract.errors import TorchparError
from torchpar.contract.unit_names import shorten
from torchpar.generations.store import Store
from torchpar.host import systemd


class ServiceName(click.ParamType):
    """The name of a service, taken as it is: "demo", "train@demo", or the name of its unit."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Returns the names that begin so; with the kind where that is begun, or two services have one name."""
        titles = list(dict.fromkeys(_titles()))
        names = [title.partition("@")[2] or title for title in titles]
        short = [title if names.count(name) > 1 else name for title, name in zip(titles, names, strict=True)]
        # Each service once: by its short name, where that begins so.
        for known in (short, titles, [f"torchpar-{title}.service" for title in titles]):
            if found := [CompletionItem(text) for text in known if text.startswith(incomplete)]:
                return found
        return []


class GenerationNumber(click.IntRange):
    """The number of a generation that is kept."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Returns the numbers that begin so, the newest first."""
        try:
            numbers = [str(generation.number) for generation in Store().history()]
        except TorchparError:
            return []
        return [CompletionItem(number) for number in numbers if number.startswith(incomplete)]


def _titles() -> Iterator[str]:
    """Yields what can be named; nothing where it cannot be read, as nobody waits for an error there."""
    try:
        active = Store().active()
        yield from (service.title for service in (active.read().services() if active else ()))
        if systemd.is_running():
            yield from map(shorten, (*systemd.running_services(), *systemd.ad_hoc_jobs()))
    except TorchparError:
        return
