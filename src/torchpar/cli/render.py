"""`torchpar render`: the unit text that the conf would give, printed or written anywhere."""

from __future__ import annotations

from pathlib import Path

import click

from torchpar.cli.names import ServiceName
from torchpar.cli.options import input_options
from torchpar.cli.output import echo_json, warn
from torchpar.cli.paths import FilePath
from torchpar.contract.errors import TorchparError
from torchpar.generations.compile import compile_conf
from torchpar.host.inputs import load
from torchpar.units.drop_ins import unit_of


@click.command(short_help="Print the units that the conf comes to.")
@click.argument("names", nargs=-1, type=ServiceName())
@input_options
@click.option("--output", type=FilePath(), help="Write the files below DIR, which must not exist.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: path and text of each.")
def render(
    names: tuple[str, ...],
    root: Path,
    facts_file: Path | None,
    conf_file: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print the drop-ins of all services, or of NAMES; the same bytes that `torchpar apply` would put in force."""
    inputs = load(root, facts_file, conf_file)
    compiled = compile_conf(inputs)
    units = compiled.content
    wanted = {service.unit for name in names for service in inputs.config.find(name)}
    files = {path: text for path, text in units.files.items() if not wanted or unit_of(path) in wanted}
    warn(compiled.warnings)
    if as_json:
        links = {path: target for path, target in units.links.items() if not wanted or unit_of(path) in wanted}
        echo_json({"files": files, "links": links, "warnings": list(compiled.warnings)})
    elif output is None:
        click.echo("\n".join(f"# {path}\n{text}" for path, text in files.items()), nl=False)
    if output is None:
        return
    try:
        output.mkdir(parents=True)
        for path, text in files.items():
            (output / path).parent.mkdir()
            (output / path).write_text(text, encoding="utf-8")
        for path, target in units.links.items():
            if not wanted or unit_of(path) in wanted:
                (output / path).parent.mkdir(exist_ok=True)
                (output / path).symlink_to(target)
    except OSError as error:
        raise TorchparError(f"{error.filename}: {error.strerror}") from None
