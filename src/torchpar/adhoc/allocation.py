"""A job in an allocation of Slurm: the allocation is the host that is planned for, and Slurm's tasks are its ranks.

Where a step has one task on each host, that starts this host's ranks by torchrun (Ranks=), and the hosts meet at the
step's first one. Else each task is a rank, by Slurm's own numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torchpar.adhoc.plan import AdHocJob, tell
from torchpar.conf.endpoint import whole_endpoint
from torchpar.conf.services import Config
from torchpar.conf.settings import TrainSettings
from torchpar.contract.job import RankSettings, parse_job_environment
from torchpar.contract.paths import LAUNCH, RUN
from torchpar.facts.slurm import SlurmTask, visible_tokens
from torchpar.facts.topology import HostFacts, PciDevice
from torchpar.plan.plan import ServicePlan, make_plan
from torchpar.plan.variables import NO_INTEL_GPU, VISIBLE_DEVICES


@dataclass(frozen=True)
class Allocation:
    """The part of a host that Slurm has given this task.

    `facts` are the host's, narrowed to the CPUs, memory and accelerators of the task, and `tokens` the variable and
    the name in it of each of these accelerators, by the plan's name. `hidden` are the variables that hide all others'.
    """

    task: SlurmTask
    facts: HostFacts
    tokens: Mapping[str, tuple[str, str]]
    hidden: Mapping[str, str]

    @property
    def is_kept_to_its_cpus(self) -> bool:
        """Says whether Slurm keeps the task to CPUs of the allocation (TaskPlugin=); else it only counts them."""
        return self.task.cpus is None or len(self.facts.allowed_cpus) <= self.task.cpus

    @property
    def shares_its_cpus(self) -> bool:
        """Says whether all tasks of this host are kept to the same CPUs, which are to be divided."""
        whole = self.task.cpus is None or len(self.facts.allowed_cpus) >= self.task.cpus
        return self.is_kept_to_its_cpus and self.task.local_world_size > 1 and whole

    @property
    def has_a_task_for_each_rank(self) -> bool:
        """Says whether any host of the step runs several tasks; then --ranks would start ranks of ranks."""
        return max(self.task.tasks) > 1

    def settings(self) -> Iterator[tuple[str, str]]:
        """Yields the settings of the job that follow from the allocation, before those of the user."""
        if self.has_a_task_for_each_rank:
            yield "Ranks", str(self.task.local_world_size if self.shares_its_cpus else 1)
        if not self.is_kept_to_its_cpus:
            yield "CPUs", "shared"
            yield "Threads", "auto"
            # On shared CPUs a job has none unless it asks.
            if gpus := len(self.facts.discrete_accelerators()):
                yield "GPUs", str(gpus)

    def warnings(self) -> Iterator[str]:
        """Yields what the user may not have meant."""
        if self.task.job_tasks > 1:
            yield (
                f"the allocation is for {self.task.job_tasks} tasks or hosts, and this is none of them but the batch "
                "script: it runs once, on this host; srun torchpar run ... starts it as each"
            )
        if not self.is_kept_to_its_cpus:
            yield (
                f"Slurm gives this task {self.task.cpus} CPUs of this host and does not say which (no TaskPlugin= of "
                "slurm.conf keeps it to them): it computes with as many threads, on any CPU"
            )


def allocate(task: SlurmTask, facts: HostFacts, environ: Mapping[str, str]) -> Allocation:
    """Makes the allocation of a task of facts that are narrowed to its CPUs already. Raises SchedulerError.

    Accelerators are those that its variables name. Their numbers are the host's where Slurm has given it all of these
    (SLURM_STEP_GPUS), and else count what it has been given, as where it sees no others (ConstrainDevices=). A single
    "1" of the GPUs 1 and 2 can be either, and is taken for the host's.
    """
    tokens: dict[str, tuple[str, str]] = {}
    hidden: dict[str, str] = {}
    for vendor, variable in VISIBLE_DEVICES.items():
        devices = sorted((gpu for gpu in facts.accelerators() if gpu.vendor == vendor), key=lambda gpu: gpu.pci)
        named = visible_tokens(environ, variable)
        numbers = {int(token) for token in named if _is_number(token)}
        given = () if numbers <= set(task.gpus) else task.gpus
        for token in named:
            device = _find(devices, token, given)
            if device is not None:
                tokens.setdefault(device.name, (variable, token))
        if devices and not named:
            hidden.update(NO_INTEL_GPU if vendor == "0x8086" else {variable: ""})
    gpus = tuple(part for gpu in facts.gpus for part in _narrow(gpu, tokens))
    return Allocation(task, dataclasses.replace(facts, gpus=gpus), tokens, hidden)


def _is_number(token: str) -> bool:
    return token.isdecimal() and len(token) < 6


def _find(devices: list[PciDevice], token: str, given: tuple[int, ...]) -> PciDevice | None:
    """Finds the device of a token; a number counts those that are `given`, and all where none are."""
    if not _is_number(token):
        return next((gpu for gpu in devices if token in (gpu.uuid, gpu.name)), None)
    number = int(token)
    if given:
        number = given[number] if number < len(given) else len(devices)
    return devices[number] if number < len(devices) else None


def _narrow(gpu: PciDevice, names: Collection[str]) -> Iterator[PciDevice]:
    """Yields a GPU with those instances of MIG that are among the names, or whole where it is."""
    instances = tuple(mig for mig in gpu.mig_instances if dataclasses.replace(gpu, mig=mig).name in names)
    if instances or gpu.name in names:
        yield dataclasses.replace(gpu, mig_instances=instances)


def plan_allocated(config: Config, job: AdHocJob, allocation: Allocation, *, running: Collection[str]) -> ServicePlan:
    """Plans a job in its allocation. Raises PlacementError when what it asks for is not there.

    [Host] is for the whole host, of which Slurm has kept back what it keeps back. Of the declared services only those
    that run count, on the CPUs that they have in force: the job knows of them, and leaves its own CPUs to nobody.
    """
    facts = allocation.facts
    host = dataclasses.replace(config.host, cpus=None, reserve_cores=0)
    settings = job.settings
    assert isinstance(settings, TrainSettings)
    if len(allocation.task.hosts) > 1 and not allocation.has_a_task_for_each_rank and settings.ranks != 1:
        number = len(allocation.task.hosts)
        settings = dataclasses.replace(settings, nodes=(number, number), endpoint=endpoint(allocation.task))
        job = dataclasses.replace(job, settings=settings)
    taken = {unit: held for unit, held in facts.in_force.items() if unit in running}
    config = dataclasses.replace(config, host=host, services=(job,))
    plan = make_plan(config, facts.afresh(), taken=taken).find(job.unit)
    if allocation.is_kept_to_its_cpus or settings.threads is not None:
        return plan
    # Only the plan knows how many ranks Ranks=gpu and numa are.
    threads = max(1, (allocation.task.cpus or 1) // (allocation.task.local_world_size * len(plan.ranks)))
    job = dataclasses.replace(job, settings=dataclasses.replace(settings, threads=threads))
    config = dataclasses.replace(config, services=(job,))
    return make_plan(config, facts.afresh(), taken=taken).find(job.unit)


def endpoint(task: SlurmTask) -> str:
    """Returns where the tasks of a step meet: at its first host, on a port that follows from the step's name."""
    return whole_endpoint(task.hosts[0], f"slurm-{task.name}")


def command_of(plan: ServicePlan, allocation: Allocation) -> tuple[str, ...]:
    """Returns the command line of this task: run.py where it is a rank itself, though the plan is for several."""
    if not _is_rank(plan, allocation):
        return plan.command
    return tuple(RUN if word == LAUNCH and place == 1 else word for place, word in enumerate(plan.command))


def environment_of(plan: ServicePlan, allocation: Allocation) -> dict[str, str]:
    """Returns the variables of this task: the plan's, with Slurm's names of its accelerators and numbers of its ranks.
    """
    task = allocation.task
    chosen: dict[str, list[str]] = {}
    for gpu in plan.gpus:
        variable, token = allocation.tokens[gpu.name]
        chosen.setdefault(variable, []).append(token)
    planned = {name: value for name, value in plan.environment.items() if name not in NO_INTEL_GPU}
    environment = {**planned, **allocation.hidden}
    # What no accelerator of the plan is named in stays as Slurm has it, unless the user wants none.
    for variable in {variable for variable, _ in allocation.tokens.values()}:
        environment[variable] = ",".join(chosen.get(variable, ()))
    if not _is_rank(plan, allocation):
        return tell(environment, signals="each")
    hosts = str(len(task.hosts))
    ranks = tuple(_ranks(plan, allocation))
    environment = tell(environment, signals="each", ranks=ranks, nodes=hosts, endpoint=endpoint(task))
    return {
        **environment,
        "RANK": str(task.rank),
        "WORLD_SIZE": str(task.world_size),
        "LOCAL_RANK": str(task.local_rank),
        "LOCAL_WORLD_SIZE": str(task.local_world_size),
    }


def _is_rank(plan: ServicePlan, allocation: Allocation) -> bool:
    """Says whether this task is one of several ranks itself."""
    # Not by the number of its ranks: Ranks=numa may be others on other hosts.
    train = plan.service.train()
    per_rank = allocation.has_a_task_for_each_rank or (train is not None and train.ranks == 1)
    return allocation.task.world_size > 1 and per_rank


def _ranks(plan: ServicePlan, allocation: Allocation) -> Iterator[RankSettings]:
    """Yields the ranks of this host as far as this task knows them: where each is on CPUs of its own, it knows its own.

    Accelerators that all tasks see are divided between them; those that Slurm has given to one are its own.
    """
    job = parse_job_environment(plan.environment)
    assert job is not None
    task = allocation.task
    if len(job.ranks) == task.local_world_size:
        yield from job.ranks
        return
    (own,) = job.ranks
    # Slurm has given each task its own where it has named fewer than the step has here.
    each = len(own.gpus) // task.local_world_size if len(allocation.tokens) >= len(task.gpus) else 0
    for rank in range(task.local_world_size):
        gpus = own.gpus[rank * each : (rank + 1) * each] if each else own.gpus if rank == task.local_rank else ()
        yield dataclasses.replace(own, local_rank=rank, gpus=gpus)
