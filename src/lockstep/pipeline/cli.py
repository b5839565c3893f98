"""The command line: a sub-command a stage.

A stage's module is imported when the stage runs, so that `lockstep summarize` does not wait for
torch, and no process touches MPI that need not.
"""

import argparse
import difflib
import faulthandler
import os
import signal
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep import __version__
from lockstep.distributed import ending
from lockstep.errors import Interrupted, Parser, UserError, first_line, nobody_reads, say
from lockstep.pipeline.config import DAY, Config, Dataset, Defaults, Run, Strict, parse
from lockstep.pipeline.kinds import MODELS


def main(argv: Sequence[str] | None = None) -> None:
    """Run a stage. Exit status 2 and one line mean that the user can mend what is wrong."""
    parser, argv = make_parser(), [*(sys.argv[1:] if argv is None else argv)]
    _refuse_unknown(parser, argv)
    args = vars(parser.parse_args(argv))
    stage, run, names = args.pop("stage"), args.pop("go"), args.pop("fields", ())
    signs = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "RANK", "SLURM_PROCID")
    rank = next((os.environ[sign] for sign in signs if sign in os.environ), None)
    who = f"lockstep {stage}" + (f", rank {rank}" if rank else "")
    try:
        parse(Defaults, {name: args[name] for name in names}, "flags")
        run(args)
    except (UserError, OSError, Interrupted) as error:
        if nobody_reads(error):
            raise
        ending.end(error, who, rank)
    except ImportError as error:
        if "failed to map segment" not in str(error):
            raise
        say(f"{who}: memory: {first_line(error)}: too little address space; allow more (ulimit -v)")
        ending.leave(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse_unknown(parser: Parser, argv: Sequence[str]) -> None:
    """Refuse a command that there is not, and say which may be meant: of the library's too."""
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    if not argv or argv[0] in commands.choices or argv[0].startswith("-"):
        return
    from lockstep.pipeline.completion import OF_THE_LIBRARY

    near = difflib.get_close_matches(argv[0], [*commands.choices, *OF_THE_LIBRARY], 1)
    meant = f"did you mean {near[0]}? " if near else ""
    parser.exit(2, f"lockstep: {argv[0]}: no such command; {meant}lockstep --help lists all\n")


# Cells of a flag's choices from which on they stand in its description.
WIDEST = 30

# Each has a parser of its own, in the library, where `lockstep NAME` leads at once.
LIBRARY = """of the library, for scripts of your own as well (lockstep NAME --help):
    launch    Start a script, or a stage, on several ranks.
    stop      Have a training save and stop.
    grow      Give a training more ranks, while it runs.
    shrink    Take ranks from a training, while it runs.
    verify    Run a script on several numbers of ranks, and compare the bits."""


def make_parser() -> Parser:
    """Return the parser of all stages."""
    parser = Parser(
        prog="lockstep",
        description=str(sys.modules["lockstep"].__doc__).splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=LIBRARY,
    )
    parser.add_argument("--version", action="version", version=f"lockstep {__version__}")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="COMMAND")

    def stage(name: str, help: str, go: Any) -> Parser:
        sub = stages.add_parser(name, help=help, description=help)
        sub.set_defaults(go=go)
        return sub

    sub = stage("init", "Write a small project to begin with, in a new folder.", _init)
    sub.add_argument("name", help="the folder's name")

    sub = stage("completion", "Write the script that has a shell complete all this.", _completion)
    sub.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")

    sub = stage("config", "Look for mistakes of YAML in configuration files.", _config)
    sub.add_argument("files", type=Path, nargs="+", help="the files")

    sub = stage("download", "Fetch a dataset's files and check them.", _download)
    _add_fields(sub, Dataset)
    _add_path(sub, "output", "the folder that gets raw/ and sources.json")

    sub = stage("weights", "Fetch weights of torchvision's.", _weights)
    sub.add_argument("--model", required=True, help="the model, such as resnet18")
    sub.add_argument("--weights", required=True, help="their name, such as IMAGENET1K_V1")
    sub.add_argument("--mirror", help="an address that has the file, in place of PyTorch's")
    _add_path(sub, "output", "the file to write")

    sub = stage("prepare", "Decode a dataset into arrays.", _prepare)
    _add_fields(sub, Dataset)
    _add_path(
        sub, "output", "the folder that `download` wrote to; gets train/, test/, manifest.json"
    )
    sub.add_argument(
        "--threads", type=int, help="how many decode images at once (default: one a core)"
    )

    sub = stage("partition", "Assign every training sample to a shard.", _partition)
    _add_data(sub)
    _add_fields(sub, Run, ("shards", "scheme", "alpha", "seed"))
    _add_path(sub, "output", "the folder that gets shards.csv, summary.csv, partition.json")

    sub = stage("check", "Try a launch: ranks, cores, devices, models, communication.", _check)
    _add_fields(sub, Run, ("ranks", "threads", "oversubscribe", "device"))
    sub.add_argument(
        "--models", nargs="+", default=["cnn"], help="the models to build (default: cnn)"
    )
    sub.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("C", "H", "W"),
        default=[1, 28, 28],
        help="channels, rows and columns of an image, in pixels (default: 1 28 28)",
    )
    sub.add_argument(
        "--images", type=int, default=2, help="the samples that a model gets at once (default: 2)"
    )
    sub.add_argument("--classes", type=int, default=10, help="the number of classes (default: 10)")
    _add_path(
        sub, "data", "a prepared dataset, to take task, shape and classes from", required=False
    )
    sub.add_argument(
        "--seconds",
        type=float,
        default=Config.model_fields["check_seconds"].default,
        help="about how long to measure the communication (default: %(default)s)",
    )
    _add_path(sub, "output", "the JSON file to write; the table beside it ends in .csv")

    sub = stage("train", "Train a model; launch it with mpirun for more than one rank.", _train)
    _add_data(sub)
    _add_path(sub, "partition", "the table of shards that `partition` wrote")
    _add_fields(sub, Run)
    _add_path(sub, "output", "the folder that gets the model and its records")

    sub = stage("watch", "Show where trainings are, from their files, until they are over.", _watch)
    sub.add_argument(
        "results",
        type=Path,
        nargs="*",
        default=[Path("results")],
        help="folders of runs, or with runs below them (default: results)",
    )

    sub = stage("diff", "Say what differs between two runs, and from which epoch on.", _diff)
    sub.add_argument("one", type=Path, help="the folder of a run")
    sub.add_argument("other", type=Path, help="the folder of another")

    sub = stage("reproduce", "Train a run again from its record, and compare the bits.", _reproduce)
    sub.add_argument("results", type=Path, help="the folder of the run, with its train.json")
    _add_path(sub, "data", "the prepared dataset, if it is not where it was", required=False)
    _add_path(sub, "partition", "the table of shards, if it is not where it was", required=False)
    _add_path(sub, "output", "a folder that gets what is trained, if it is to stay", required=False)

    sub = stage("average", "Average the last snapshots of a run.", _average)
    _add_results(sub)
    _add_data(sub)
    _add_fields(sub, Run, ("threads",))

    sub = stage(
        "evaluate", "Measure the models of a run on the test set, over MPI or not.", _evaluate
    )
    _add_results(sub)
    _add_data(sub)
    sub.add_argument("--ranks", type=int, help="how many must be there (default: as many as are)")
    _add_fields(sub, Run, ("threads",))

    sub = stage("export", "Write a trained model for others, with a model card.", _export)
    sub.add_argument("results", type=Path, help="the folder of the run")
    sub.add_argument(
        "--to",
        choices=("torch", "onnx", "safetensors"),
        required=True,
        help="a program of torch.export, an ONNX file, or the weights",
    )
    _add_model(sub)
    _add_path(sub, "output", "a new folder for it")

    sub = stage("crate", "Write an experiment for an archive: a Workflow Run RO-Crate.", _crate)
    sub.add_argument("results", type=Path, help="the folder of the experiment")
    text = "what others may do with it: an identifier such as CC-BY-4.0, or an address"
    sub.add_argument("--license", required=True, help=text)
    _add_path(sub, "output", "a new folder for it")

    sub = stage("predict", "Show a trained model photos, or samples in an .npz.", _predict)
    sub.add_argument("results", type=Path, help="the folder of the run")
    sub.add_argument("files", type=Path, nargs="+", help="photos, folders of photos, .npz files")
    _add_model(sub)
    _add_path(sub, "csv", "a file to write all probabilities to", required=False)

    sub = stage("summarize", "Write a table with a row for each run.", _summarize)
    sub.add_argument("results", type=Path, nargs="+", help="the folders of the runs")
    _add_path(sub, "output", "the table to write, CSV")

    sub = stage("page", "Write a page of runs, finished or not, into their folder.", _page)
    sub.add_argument("results", type=Path, help="the folder with the runs' folders")
    text = "the runs, in their order (default: all that are there)"
    sub.add_argument("--runs", nargs="+", metavar="RUN", help=text)
    text = "write it again every ten seconds, until every run is done"
    sub.add_argument("--follow", action="store_true", help=text)

    sub = stage(
        "report", "Draw the figures of runs, or the table of all and their launches.", _report
    )
    sub.add_argument("results", type=Path, help="the folder with the runs' folders")
    what = sub.add_mutually_exclusive_group(required=True)
    text = "draw the figures of these, into their folders"
    what.add_argument("--runs", nargs="+", metavar="RUN", help=text)
    text = "draw summary.csv, and the launches that these JSON files of `check` are of"
    what.add_argument("--checks", type=Path, nargs="+", metavar="FILE", help=text)
    return parser


def _add_path(parser: Parser, name: str, help: str, required: bool = True) -> None:
    parser.add_argument(f"--{name}", type=Path, required=required, help=help)


def _add_data(parser: Parser) -> None:
    _add_path(parser, "data", "the folder of the prepared dataset")


def _add_results(parser: Parser) -> None:
    _add_path(parser, "results", "the folder of the run")


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="last",
        help="which of the run's two models (default: %(default)s)",
    )


def _add_fields(parser: Parser, model: type[Strict], names: Sequence[str] = ()) -> None:
    """Make a flag of each field of a configuration model, with its description and default."""
    if names:  # a whole model is checked when it is built, a few of its fields by `main`
        parser.set_defaults(fields=names)
    for name in names or model.model_fields:
        field = model.model_fields[name]
        kind = field.annotation
        options: dict[str, Any] = {"default": field.default}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is typing.Literal:
            options["choices"] = typing.get_args(kind)
            if len(" ".join(options["choices"])) > WIDEST:
                options["metavar"] = "NAME"
        else:
            if isinstance(kind, types.UnionType):
                kind = typing.get_args(kind)[0]
            options["type"], options["metavar"] = kind, getattr(kind, "__name__", "value").upper()
        text = " ".join((field.description or "").split()).replace("%", "%%")
        text = text.removesuffix(".")
        if "metavar" in options and "choices" in options:
            text += f"; one of {', '.join(options['choices'])}"
        if field.default is not None:
            text += f" (default: {field.default})"
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **options)


def _take(args: dict[str, Any], model: type[Strict]) -> Any:
    """Take the fields of a configuration model out of `args` and build it."""
    return parse(model, {name: args.pop(name) for name in model.model_fields}, "flags")


def _limit_threads(threads: int) -> None:
    # Libraries read these once, when they are loaded. Snakemake sets them to the threads of a whole
    # rule, which is those of all its ranks.
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["OMP_DYNAMIC"] = "FALSE"  # just so many, however busy the machine is
    # cuBLAS sums in a fixed order only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _init(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.init import init

    folder = init(**args)
    print(f"{folder}: written; cd {folder}, and its README.md tells what to do")


def _completion(args: dict[str, Any]) -> None:
    from lockstep.pipeline.completion import completion

    print(completion(make_parser(), **args))


def _config(args: dict[str, Any]) -> None:
    from lockstep.pipeline.yaml_file import check_file

    for path in args["files"]:
        check_file(path)


def _download(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.download import download

    download(_take(args, Dataset), **args)


def _weights(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.download import fetch_weights

    fetch_weights(**args)


def _prepare(args: dict[str, Any]) -> None:
    if args["threads"] is not None and args["threads"] < 1:
        raise UserError(f"flags: threads: expected 1 or more, not {args['threads']}")
    from lockstep.pipeline.stages.prepare import for_terminal, prepare

    print(for_terminal(prepare(_take(args, Dataset), **args)))


def _partition(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.partition import for_terminal, partition

    print(for_terminal(partition(**args)))


def _check(args: dict[str, Any]) -> None:
    if not 0 <= args["seconds"] <= DAY:
        raise UserError(f"flags: seconds: expected 0 to {DAY:g}, not {args['seconds']}")
    _limit_threads(args["threads"])
    from lockstep.pipeline.stages.check import check, for_terminal

    if (data := args.pop("data")) is not None:
        from lockstep.pipeline.data.manifest import read_manifest

        manifest = read_manifest(data)
        args |= {"shape": manifest.shape, "classes": manifest.outputs, "task": manifest.task}
    if check(**{**args, "shape": tuple(args["shape"])}) is not None:
        print(for_terminal(args["output"].with_suffix(".csv")))


def _train(args: dict[str, Any]) -> None:
    run = _take(args, Run)
    _limit_threads(run.threads)
    faulthandler.enable()  # a file that is cut short under a rank's map kills it: say where
    # Until the training looks out for them, signals wait: importing torch takes seconds.
    signals = {signal.SIGUSR1, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        from lockstep.pipeline.stages.train import train

        train(run, **args)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _watch(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.watch import watch

    watch(**args)


def _reproduce(args: dict[str, Any]) -> None:
    from lockstep.pipeline.record import read_training

    _limit_threads(read_training(args["results"]).configuration.threads)
    from lockstep.pipeline.stages.reproduce import reproduce

    sys.exit(0 if reproduce(**args) else 1)


def _diff(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.diff import diff

    sys.exit(0 if diff(**args) else 1)


def _average(args: dict[str, Any]) -> None:
    _limit_threads(args["threads"])
    from lockstep.pipeline.stages.average import average

    average(**args)


def _evaluate(args: dict[str, Any]) -> None:
    if args["ranks"] is not None:
        parse(Defaults, {"ranks": args["ranks"]}, "flags")
    _limit_threads(args["threads"])
    from lockstep.pipeline.stages.evaluate import evaluate

    evaluate(**args)


def _export(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.export import export

    print(export(**args))


def _crate(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.crate import crate

    print(crate(**args))


def _predict(args: dict[str, Any]) -> None:
    from lockstep.pipeline.record import read_training

    _limit_threads(read_training(args["results"]).configuration.threads)
    from lockstep.pipeline.stages.predict import for_terminal, predict

    table, bad = predict(**args)
    if len(table):
        print(for_terminal(table))
    if bad:  # of which it has been said already
        sys.exit(2)


def _summarize(args: dict[str, Any]) -> None:
    from lockstep.pipeline.stages.summarize import for_terminal, summarize

    summarize(**args)
    print(for_terminal(args["output"]))


def _page(args: dict[str, Any]) -> None:
    import time

    from lockstep.pipeline import page
    from lockstep.pipeline.page.write import write_page

    while not write_page(args["results"], args["runs"], args["follow"]) and args["follow"]:
        time.sleep(page.EVERY)
    print(args["results"] / page.NAME)


def _report(args: dict[str, Any]) -> None:
    from lockstep.pipeline import report

    if args["runs"] is not None:
        report.draw_runs(args["results"], args["runs"])
    else:
        report.draw_table(args["results"], args["checks"])
