"""reproduce: train a run again from its record, at any number of ranks, and compare the bits."""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lockstep import determinism, provenance
from lockstep.distributed import devices
from lockstep.distributed.world import World, discover
from lockstep.errors import Interrupted, UserError, in_words, say
from lockstep.files import check_sha256
from lockstep.pipeline import identity
from lockstep.pipeline.config import Run, parse
from lockstep.pipeline.data.manifest import read_manifest
from lockstep.pipeline.differences import RESULTS, circumstances, results
from lockstep.pipeline.record import (
    Arithmetic,
    Place,
    Training,
    check_trained_on,
    read_training,
)
from lockstep.pipeline.stages.train import session_of, train_in
from lockstep.strategies import catalogue


def reproduce(
    results: Path, data: Path | None, partition: Path | None, output: Path | None
) -> bool:
    """Train the run in `results` again, on as many ranks as were launched, and compare.

    What else than the run might change the bits (versions, code, processors) is said before, and
    again if the bits differ.

    Args:
        results: the folder of the run; only its train.json is read.
        data: the folder of the prepared dataset; None takes the recorded one.
        partition: the table of shards; None takes the recorded one.
        output: the folder that gets what `train` writes; None throws it away.

    Returns:
        Whether all bits are the same, on rank 0; True on the others.

    Raises:
        UserError: it cannot be tried: the data or the shards are others or are not here, the record
            is damaged, or this number of ranks cannot give the recorded bits.
    """
    record, where = read_training(results), results / "train.json"
    world = discover()
    if world.rank == 0 and output is not None and output.exists():
        check_empty(output)
    run = as_launched(record.configuration, record, world, where)
    data, partition = data or Path(record.data), partition or Path(record.partition)
    if world.rank == 0:
        check_inputs(record, results, data, partition)
    manifest = read_manifest(data).seen_by(run)
    inputs = identity.inputs(run, manifest, partition)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="lockstep-") as folder,
            session_of(run, inputs) as session,
        ):
            now = record.model_copy(
                update={
                    "versions": provenance.versions(),
                    "code": inputs["code"],
                    "arithmetic": Arithmetic(**determinism.arithmetic()),
                    "ranks": [Place(**devices.describe(session.world, session.device))],
                }
            )
            if world.rank == 0:
                for line in differences(record, now):
                    say(f"note: {line}")
            output = output or Path(folder)
            again = train_in(session, run, manifest, inputs, data, partition, output)
    except Interrupted:
        raise UserError(
            "told to stop before the end; a comparison is begun anew, and in a new folder"
        ) from None
    return again is None or _verdict(record, again)


def check_empty(output: Path) -> None:
    """Refuse a folder that has something in it: it may be another run, or be one soon.

    Raises:
        UserError: it has, or is none.
    """
    try:
        held = sorted(path.name for path in output.iterdir())
    except NotADirectoryError:
        raise UserError(f"output: {output} is no folder; take another") from None
    if held:
        raise UserError(
            f"output: {output} holds {held[0]}, and a run that is reproduced begins anew; take "
            f"another folder, or remove this one"
        )


def as_launched(recorded: Run, record: Training, world: World, where: Path) -> Run:
    """Return the recorded run with the number of ranks that there is, on the same kind of device.

    Raises:
        UserError: so many ranks cannot give the bits that were recorded.
    """
    declared = catalogue.of(recorded)
    if world.size != recorded.ranks and not declared.keeps_bits:
        raise UserError(
            f"{where}: the bits of {declared.label} depend on the number of ranks, which was "
            f"{recorded.ranks}, not {world.size}; launch with `mpirun -n {recorded.ranks}`"
        )
    # Where the bits depend on the number of ranks, they depend on the backend's sums as well.
    backend = "auto" if declared.keeps_bits else record.backend
    on_cpu = {place.device for place in record.ranks} == {"cpu"}
    # It is the bits that count now, not the speed: ranks may share cores.
    changes: dict[str, object] = {
        "ranks": world.size,
        "device": "cpu" if on_cpu else "cuda",
        "backend": backend,
        "init_method": "auto",
        "oversubscribe": True,
        "tensorboard": False,
    }
    changes |= declared.on_ranks(recorded, world.size)
    launched: Run = parse(Run, recorded.model_dump() | changes, str(where))
    return launched


def check_inputs(record: Training, results: Path, data: Path, partition: Path) -> None:
    """Refuse other data or other shards than were recorded in `results`.

    Raises:
        UserError: they are others, or are not there.
    """
    for name, path in (("data", data / "manifest.json"), ("partition", partition)):
        if not path.exists():
            raise UserError(f"{name}: {path} is not here; say where it is by --{name}")
    check_trained_on(record, results, read_manifest(data).seen_by(record.configuration), data)
    do = "say by --partition where that one is"
    check_sha256(partition, record.partition_sha256, results / "train.json", do)


def differences(record: Training, now: Training) -> Iterable[str]:
    """Yield a line for each thing that may change the bits and is not as it was.

    Args:
        record: what train.json says.
        now: what that of this launch says.
    """
    pairs = provenance.differences(circumstances(record), circumstances(now))
    for name, (then, here) in pairs.items():
        yield f"{name}: {in_words(here)} here, {in_words(then)} in the record"
    if names := provenance.other_code(record.code, now.code):
        yield f"code: other than in the record is {names}"


def _verdict(record: Training, again: Training) -> bool:
    """Print what is equal and what is not, a line each; return whether all is."""
    found = results(record, again)
    same = all(found.values())
    for name, equal in found.items():
        then, now = ((getattr(some, RESULTS[name]) or "none")[:12] for some in (record, again))
        print(f"{name:22}" + (f"equal      {now}" if equal else f"DIFFERENT  {now}, not {then}"))
    ranks = [len(some.ranks) for some in (again, record)]
    print(
        "{} bits with P = {} as with P = {}".format("the same" if same else "not the same", *ranks)
    )
    if not same:
        for line in list(differences(record, again)) or ["nothing that the record has"]:
            print(f"not as it was: {line}")
    sys.stdout.flush()  # before MPI ends the other ranks, and says so
    return same
