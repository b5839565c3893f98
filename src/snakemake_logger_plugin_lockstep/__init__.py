"""`logger: lockstep`: a workflow as a person wants to see it, in place of Snakemake's text.

Snakemake finds this package by its name. What it says goes on to `lockstep.pipeline.overview`; its
own text is in its log, and here with -n, --verbose, --printshellcmds, --debug-dag and --quiet.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

if TYPE_CHECKING:
    from lockstep.pipeline.overview import Overview

# What Snakemake mentions of its own work: it is in its log.
NOISE = (
    *("Assuming", "Building DAG", "Cleaning up", "Conda env", "Config file", "Elapsed time"),
    *("Group jobs", "Job ", "Processed ", "Removing", "SLURM run ID", "Select jobs", "Singularity"),
    *("Storing", "Touching", "Updating", "Using shell", "Waiting", "host:"),
)
# What it says when a person ends it.
INTERRUPT = "Terminating processes on user request"
# What it says of a job that failed beside telling so, and of a page that is written on the way.
SAID = (
    *("CalledProcessError in file", "At least one job did not complete", "execution failed. Look"),
    "of rule page were not present when the DAG was created",
)


class LogHandler(LogHandlerBase):
    """Has an overview show the jobs of a workflow."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        asked = self.common_settings
        self.text: logging.Handler | None = None
        if any((asked.dryrun, asked.verbose, asked.printshellcmds, asked.debug_dag, asked.quiet)):
            stream = sys.stdout if asked.stdout else sys.stderr
            self.text = ColorizingTextHandler(nocolor=asked.nocolor, stream=stream)
            self.text.addFilter(
                DefaultFilter(
                    asked.quiet,
                    asked.debug_dag,
                    asked.verbose,
                    asked.dryrun,
                    asked.printshellcmds,
                )
            )
            self.text.setFormatter(DefaultFormatter(asked.quiet, asked.show_failed_logs))
        self.overview: Overview | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Show what Snakemake says."""
        if self.text:
            self.text.handle(record)
            return
        try:
            self._take(record)
        except Exception:  # what is shown is no reason to end
            self.handleError(record)

    def close(self) -> None:
        """Leave the terminal as it is at the end."""
        if self.overview:
            self.overview.end()
        super().close()

    def _take(self, record: logging.LogRecord) -> None:
        event, of = getattr(record, "event", None), record.__dict__
        if event in (None, LogEvent.ERROR, LogEvent.GROUP_ERROR):
            text = record.getMessage()
            if self.overview and text.startswith(INTERRUPT):
                self.overview.interrupt()
            is_noise = record.levelno < logging.WARNING and text.startswith(NOISE)
            if not is_noise and not any(words in text for words in SAID):
                print(text, file=sys.stderr, flush=True)  # above the view, which redirects it
            return
        if event == LogEvent.RUN_INFO:
            # Not before: the workflow says first which copy of the package it is made with.
            from lockstep.pipeline.overview import Overview

            self.overview = self.overview or Overview()
            self.overview.plan(of["stats"])
        if self.overview is None:
            return
        if event == LogEvent.JOB_INFO and of["shellcmd"]:  # a target has none, and runs nothing
            name = ", ".join(map(str, of["wildcards"].values()))
            self.overview.start(of["jobid"], of["rule_name"], name, map(Path, of["output"]))
        elif event == LogEvent.JOB_FINISHED:
            self.overview.finish(of["job_id"])
        elif event == LogEvent.JOB_ERROR:
            self.overview.fail(of["jobid"], of["rule_name"], [Path(log) for log in of["log"]])
        elif event == LogEvent.PROGRESS and of["done"] == of["total"]:
            self.overview.end()
