"""The command ``driftline``: the composition root, where settings, clocks and signals meet the parts.

Exit codes: 0 done; 1 failed or found trouble; 2 a setting, a spec, an address or the command line is wrong; 130 the
demo was interrupted.
Each command imports what it runs when it runs: ``--help`` must not wait for Faust, pyarrow or chDB.
"""

from __future__ import annotations

import logging
import platform
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from importlib.metadata import version as version_of
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

from monitor.errors import ConfigError, DriftlineError
from streams.console import (
    say,
    with_settings,
    working,
    write_addresses,
    write_backtest,
    write_json,
    write_reference,
    write_replay,
    write_rows,
    write_spending,
)
from streams.incident_commands import app as incident_app
from streams.init_command import app as init_app
from streams.key_commands import app as keys_app
from streams.label_commands import app as labels_app
from streams.options import (
    EXIT_CONFIG,
    EXIT_FAILED,
    Config,
    From,
    Json,
    To,
    load,
    now_ms,
    time_of,
)
from streams.options import since as since_of
from streams.processes import PROCESSES, Process, named, resolve, run_patiently, stop_on_signals
from streams.read_commands import app as read_app

if TYPE_CHECKING:
    from monitor.settings import Settings

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED: Final = 130  # as a shell says of what SIGINT ended

app = typer.Typer(
    name="driftline",
    help="Watches machine-learning models in production: exact, quiet, useful, fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
run_app = typer.Typer(help="Run one process until SIGTERM or Ctrl-C.", no_args_is_help=True)
topics_app = typer.Typer(help="Create or list the Kafka topics.", no_args_is_help=True)
reference_app = typer.Typer(help="Build or show a model's reference.", no_args_is_help=True)
dlq_app = typer.Typer(help="Look at dead letters, or send them again.", no_args_is_help=True)
app.add_typer(init_app)
app.add_typer(read_app)
app.add_typer(run_app, name="run")
app.add_typer(topics_app, name="topics")
app.add_typer(reference_app, name="reference")
app.add_typer(dlq_app, name="dlq")
app.add_typer(incident_app, name="incident")
app.add_typer(labels_app, name="labels")
app.add_typer(keys_app, name="keys")


class Runner(Enum):
    """The values of ``detector.runner``, for the command line."""

    TRANSACTIONAL = "transactional"
    FAUST = "faust"


Broker = Annotated[
    str | None,
    typer.Option("--broker", metavar="HOST:PORT", help="Use this Kafka, not the embedded one."),
]
ClickHouse = Annotated[
    str | None,
    typer.Option("--clickhouse", metavar="URL", help="Use this ClickHouse, not the embedded one."),
]


def _add_process(process: Process) -> None:
    @run_app.command(process.name, help=process.summary, cls=with_settings(process))
    def run(config: Config = None) -> None:
        _run(process.name, load(config, process.name))


def _add_profiler(process: Process) -> None:
    @run_app.command(process.name, help=process.summary, cls=with_settings(process))
    def run(
        workers: Annotated[
            int,
            typer.Option(
                min=1,
                max=64,
                help="Processes on this machine, which share the partitions: one a core.",
            ),
        ] = 1,
        config: Config = None,
    ) -> None:
        settings = load(config, process.name)
        if workers == 1:
            _run(process.name, settings)
            return
        from streams.workers import run_profilers

        with suppress(KeyboardInterrupt):  # Ctrl-C or SIGTERM: the workers have stopped
            run_profilers(settings, config, workers)


def _add_detector(process: Process) -> None:
    @run_app.command(process.name, help=process.summary, cls=with_settings(process))
    def run(
        runner: Annotated[
            Runner | None,
            typer.Option(help="What runs the stages; DRIFTLINE_DETECTOR__RUNNER."),
        ] = None,
        config: Config = None,
    ) -> None:
        settings = load(config, process.name)
        if runner is not None:
            chosen = settings.detector.model_copy(update={"runner": runner.value})
            settings = settings.model_copy(update={"detector": chosen})
        _run(process.name, settings)


def _run(name: str, settings: Settings) -> None:
    from monitor import metrics

    metrics.serve(settings.metrics)
    stop = threading.Event()
    stop_on_signals(stop)
    failed = metrics.TRANSIENT_ERRORS.labels(name).inc
    run_patiently(resolve(named(name)), settings, stop, failed=failed)


_WITH_OPTIONS: Final = {"profiler": _add_profiler, "detector": _add_detector}
for _process in PROCESSES:
    _WITH_OPTIONS.get(_process.name, _add_process)(_process)


@app.command()
def demo(
    months: Annotated[
        str, typer.Option(help="Months of 2013 to replay, such as 2-12 or 5.")
    ] = "2-12",
    speed: Annotated[
        float, typer.Option(min=0, help="Event-time seconds per second; 0 is as fast as it goes.")
    ] = 0.0,
    headless: Annotated[
        bool, typer.Option("--headless", help="No display; run to the end.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write a report to FILE.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Stay up at the end, to look around.")
    ] = False,
    broker: Broker = None,
    clickhouse: ClickHouse = None,
    config: Config = None,
) -> None:
    """Replay eleven months of real flights through everything, with two staged accidents.

    In May, EWR's wind_speed arrives in km/h instead of mph for five days: a pipeline fault. In September, version 8 is
    released with a bug in one feature, beside version 7: a bad release. The rest, winter to summer, is nature.
    """
    settings = load(config, "demo")
    from streams.demo import show

    try:
        result = show.run(
            settings,
            months=months,
            speed=speed,
            headless=headless,
            report=report,
            keep=keep,
            broker=broker,
            clickhouse=clickhouse,
        )
    except (
        KeyboardInterrupt
    ):  # the supervisor makes it of SIGTERM, too; everything has been stopped
        say("stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if result.problems:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def up(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where data and logs go; DRIFTLINE_EMBEDDED__DATA_DIR.")
    ] = None,
    broker: Broker = None,
    clickhouse: ClickHouse = None,
    config: Config = None,
) -> None:
    """Run everything on this machine until Ctrl-C: a broker, a database and all processes.

    Embedded data starts empty each time: the broker keeps its topics in memory, and the database's tables are removed
    at the next start. To keep data, give the addresses of a Kafka and a ClickHouse.
    """
    settings = load(config, "up")
    from streams.embedded.stack import embedded_stack

    console = Console(highlight=False)
    console.print("starting a broker, a database and the processes ...", style="dim")
    try:
        with embedded_stack(
            settings, data_dir=data_dir, broker=broker, database=clickhouse
        ) as stack:
            write_addresses(stack.addresses())
            stack.wait()
    except (
        KeyboardInterrupt
    ):  # the supervisor makes it of SIGTERM, too; everything has been stopped
        console.print("stopped", style="dim")


@topics_app.command("create")
def topics_create(as_json: Json = False, config: Config = None) -> None:
    """Create the topics that are missing; the others are checked and left alone."""
    settings = load(config, "topics")
    from streams import clients, topics, wiring

    admin = clients.admin(wiring.require_broker(settings), logger)
    created = topics.create(admin, wiring.topics(settings), wiring.widths(settings))
    if as_json:
        write_json({"created": created})
    else:
        say(f"created {len(created)} topics" if created else "all topics are there")


@topics_app.command("list")
def topics_list(as_json: Json = False, config: Config = None) -> None:
    """List the topics and whether the broker has them."""
    settings = load(config, "topics")
    from streams import clients, topics, wiring

    admin = clients.admin(wiring.require_broker(settings), logger)
    names, widths = wiring.topics(settings), wiring.widths(settings)
    missing = topics.check(admin, names, widths)
    rows = [
        {
            "topic": names.name(spec.suffix),
            "partitions": widths.of(spec),
            "cleanup": spec.cleanup,
            "holds": spec.value,
            "exists": names.name(spec.suffix) not in missing,
        }
        for spec in topics.SPECS
    ]
    write_rows(rows, as_json=as_json)
    if missing:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def apply(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The model's spec.")],
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Drop the reference that the model has.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Follow a model as its spec says; a reference file is read and frozen now."""
    settings = load(config, "apply")
    from monitor.spec import load_spec
    from streams import authoring

    spec = load_spec(spec_file)
    with working(f"applying {spec_file}"):
        applied = authoring.apply(settings, spec, origin=spec_file, recalibrate=recalibrate)
    if as_json:
        write_json(applied.summary)
    else:
        say(applied.sentence)


@reference_app.command("build")
def reference_build(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Parquet, CSV or Arrow.")],
    spec_file: Annotated[Path, typer.Option("--spec", help="The model's spec (YAML).")],
    publish: Annotated[bool, typer.Option("--publish", help="Freeze it for the model.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Build a reference from past predictions, show it, and publish it if asked to."""
    settings = load(config, "reference")
    from monitor.spec import load_spec
    from streams import authoring

    with working(f"reading {source}"):
        reference = authoring.build(settings, load_spec(spec_file), source, publish=publish)
    write_reference(authoring.summary(reference), as_json=as_json)


@reference_app.command("show")
def reference_show(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Show the reference that a model is compared with."""
    settings = load(config, "reference")
    from streams import authoring

    with working("reading the models"):
        reference = authoring.current(settings, model)
    write_reference(authoring.summary(reference), as_json=as_json)


@app.command()
def ledger(
    drained: Annotated[
        bool, typer.Option("--drained", help="All that was sent has arrived: every sum must agree.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Account for every event: in = in panes + late + dead letters. Exit code 1 if one is missing."""
    settings = load(config, "ledger")
    from msgspec import to_builtins

    from monitor import store

    with working("adding up"):
        found = store.connect(settings.clickhouse).ledger(drained=drained)
    if as_json:
        write_json(to_builtins(found))
    else:
        write_rows(to_builtins(found.rows), as_json=False)
        for hole in found.holes:
            say(f"hole in partition {hole.partition}, {hole.start} to {hole.end}: {hole.reason}")
        say("  ".join(f"{name} {n:,}" for name, n in to_builtins(found.total).items()))
    if found.total.unaccounted:
        raise typer.Exit(EXIT_FAILED)


Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Letters from here on; UTC, or a duration: 2h."),
]
Reason = Annotated[str | None, typer.Option("--reason", help="Only of this reason.")]
DeadStage = Annotated[str | None, typer.Option("--stage", help="Only of this stage.")]


@dlq_app.command("show")
def dlq_show(
    since: Since = None,
    reason: Reason = None,
    stage: DeadStage = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 is all.")] = 20,
    value: Annotated[
        bool, typer.Option("--value", help="With what each begins with: it may be personal.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Show messages that were refused: when, by whom, why, and where they came from; the newest last."""
    settings = load(config, "dlq")
    from streams import dlq, wiring

    chosen = dlq.Filter(since_of(since, now_ms()), reason, stage, limit)
    topics = wiring.topics(settings)
    with (
        working("reading dead letters"),
        dlq.Reader(wiring.require_broker(settings), topics.prefix) as reader,
    ):
        found = reader.find(topics.dlq, chosen, monotonic=time.monotonic)
    write_rows(dlq.rows(found, value=value), as_json=as_json)


@dlq_app.command("replay")
def dlq_replay(
    since: Since = None,
    reason: Reason = None,
    stage: DeadStage = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 is all.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Send refused predictions and labels again, after what was wrong has been mended: a spec, a limit, a release.

    Bytes, key and headers are the original ones. Each is sent once, however often this is repeated, and no more after it was refused three times.
    It arrives as a new message: a prediction that is too old by now counts as late, and a label is the newest of its id.
    Exit code 1 if one that was chosen cannot be sent.
    """
    settings = load(config, "dlq")
    from streams import dlq, replay

    def confirm(messages: int) -> bool:
        return yes or typer.confirm(f"send {messages:,} messages again?", err=True)

    replayed = replay.replay(
        settings,
        dlq.Filter(since_of(since, now_ms()), reason, stage, limit),
        monotonic=time.monotonic,
        confirm=confirm,
        dry_run=dry_run,
    )
    write_replay(
        [(x.letter.to_dict(replayed=False, value=False), x.fate.value) for x in replayed],
        dry_run=dry_run,
        as_json=as_json,
    )
    if any(x.fate.is_trouble for x in replayed):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def budget(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only this one.")] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Show what each model's alarm budget allows, and the incidents that were opened."""
    settings = load(config, "budget")
    from msgspec import to_builtins

    from monitor import store

    with working("adding up"):
        found = store.connect(settings.clickhouse).spending(model)
    if model is not None and not found:
        raise ConfigError(f"no model is called {model}")
    write_spending(to_builtins(found), as_json=as_json)


@app.command()
def backtest(
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model.")],
    from_: From = None,
    to: To = None,
    budgets: Annotated[
        list[str] | None,
        typer.Option("--budget", metavar="N/DURATION", help="Another budget, such as 1/7d."),
    ] = None,
    psi: Annotated[float, typer.Option(help="A fixed limit of PSI; 0 leaves it out.")] = 0.1,
    ks_p: Annotated[float, typer.Option(help="A fixed p-value of KS; 0 leaves it out.")] = 0.05,
    incidents: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Known incidents: CSV or YAML with start, end, name."),
    ] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Judge a model's stored windows again: pages a month under its budget, other budgets and fixed thresholds.

    The file of known incidents has start and end, and may have name, feature and kind: found is one during which a page
    opened, which names the feature where one is given.
    """
    settings = load(config, "backtest")
    from msgspec import to_builtins

    from streams import backtest as backtests

    with working("reading the model") as told:
        report = backtests.run(
            settings,
            model,
            backtests.rules_of(budgets or (), psi=psi, ks_p=ks_p),
            from_ms=time_of("--from", from_),
            to_ms=time_of("--to", to),
            episodes=backtests.read_episodes(incidents) if incidents is not None else (),
            progress=lambda judged, of: told(f"{judged:,} of {of:,} windows judged"),
        )
    write_backtest(to_builtins(report), as_json=as_json)


@app.command()
def doctor(as_json: Json = False, config: Config = None) -> None:
    """Check broker, topics, ClickHouse, migrations, clocks, lag and disk, and say what to do."""
    settings = load(config, "doctor")
    from streams import doctor as doctor_

    with working("examining broker and database"):
        findings = doctor_.examine(settings, now_s=time.time)
    if as_json:
        write_json([finding.to_dict() for finding in findings])
    else:
        doctor_.write(findings, Console(highlight=False))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def health(
    process: Annotated[str, typer.Argument(help="Name of the process, as in `driftline run`.")],
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Ask a process on this machine whether its work moves, or there is none. Exit code 1 if not.

    Its metrics must be on. A check that runs every few seconds is cheaper as `python -m monitor.probe`.
    """
    settings = load(config, "health")
    from monitor import probe

    asked = named(process).name
    if not settings.metrics.port:
        raise ConfigError(
            f"metrics.port (DRIFTLINE_METRICS__PORT) is 0: {asked} cannot say how it is"
        )
    wrong = probe.ask(probe.metrics_url(settings.metrics.port), time.time())
    if as_json:
        write_json({"process": asked, "well": wrong is None, "problem": wrong})
    else:
        say(wrong or f"{asked} is well")
    if wrong:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def migrate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Bring the tables in ClickHouse up to this release."""
    settings = load(config, "migrate")
    from monitor import store

    with working("migrating"):
        applied = store.migrate(settings.clickhouse, dry_run=dry_run)
    if as_json:
        write_json({"dry_run": dry_run, "applied": applied})
    else:
        verb = "would apply" if dry_run else "applied"
        say(f"{verb} {', '.join(applied)}" if applied else "all migrations are applied")


class Shell(Enum):
    """Shells whose completion is known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="Whose script to print.")]) -> None:
    """Print what a shell needs to complete commands and options.

    bash: eval "$(driftline completion bash)" in ~/.bashrc. zsh: the same in ~/.zshrc, after compinit. fish: driftline completion fish > ~/.config/fish/completions/driftline.fish.
    """
    from typer._completion_shared import get_completion_script

    say(
        get_completion_script(
            prog_name="driftline", complete_var="_DRIFTLINE_COMPLETE", shell=shell.value
        )
    )


@app.command()
def version(as_json: Json = False) -> None:
    """Print the versions of Driftline and of Python."""
    versions = {"driftline": version_of("driftline"), "python": platform.python_version()}
    if as_json:
        write_json(versions)
    else:
        say(f"driftline {versions['driftline']} (Python {versions['python']})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, or ``arguments``; errors that a user can act on are one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that it cannot show is no failure
            stream.reconfigure(errors="replace")
    try:
        app(arguments, prog_name="driftline")
    except ConfigError as err:
        _fail(str(err), EXIT_CONFIG)
    except DriftlineError as err:
        _fail(str(err), EXIT_FAILED)


def _fail(message: str, code: int) -> None:
    from monitor.logs import redact_text

    sys.stderr.write(f"driftline: {redact_text(' '.join(message.split()))}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
