"""The commands: train, sample, evaluate, report, runs, plugins, config, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fmkit.errors import ConfigError

Device = Annotated[str, typer.Option(help="auto (the GPU, if there is one), cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON on standard output.")]
Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As trainer.steps=2000 path=vp.")]

app = typer.Typer(
    help="Flow matching: train a flow, sample it, score it. --debug shows the whole traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
plugins = typer.Typer(help="What is installed.", no_args_is_help=True, rich_markup_mode=None)
config = typer.Typer(help="Configurations, and their JSON schema.", no_args_is_help=True, rich_markup_mode=None)
bench = typer.Typer(help="Published tables, measured again.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(plugins, name="plugins")
app.add_typer(config, name="config")
app.add_typer(bench, name="bench")
runs = typer.Typer(help="Run folders.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs, name="runs")


def _version(wanted: bool) -> None:
    if wanted:
        from fmkit._version import __version__

        typer.echo(f"fmkit {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Flow matching: train a flow, sample it, score it."""


@app.command()
def train(
    target: Annotated[str, typer.Argument(help="A recipe (digits, moons, ...), a YAML file, or a run to resume.")],
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no report.")] = False,
    as_json: Json = False,
) -> None:
    """Train a flow, then sample and score it."""
    from fmkit.cli.training import train_run

    figures = train_run(target, words or [], out, resume, quiet=quiet or as_json)
    if as_json and figures:  # only one of several processes has them
        _answer(figures)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A run folder, or a saved flow.")],
    n: Annotated[
        int | None, typer.Option("-n", help="How many samples; 64, or one for each condition, by default.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help=".npz, .npy, .csv or .png")] = Path("samples.npz"),
    solver: Annotated[str | None, typer.Option(help="Instead of the flow's own, as midpoint or {name: ...}.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a fixed-step solver.")] = None,
    label: Annotated[int | None, typer.Option(help="A class for every sample.")] = None,
    conditions: Annotated[
        Path | None, typer.Option(help="A .npy file: a condition for each sample, as the run was trained with.")
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Scale of classifier-free guidance, or as '{name: cfg-zero-star, scale: 2}'.")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="START,END", help="Times that are guided, 0 noise and 1 data.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    log_prob: Annotated[bool, typer.Option("--log-prob", help="Write log-densities too (.npz, .csv).")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the field first: for many samples.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw samples from a trained flow."""
    from fmkit.cli.sampling import sample_run

    facts = sample_run(
        run, n, out, solver, steps, label, conditions, guidance, guidance_interval, seed, log_prob, compile, device
    )
    if as_json:
        _answer(facts)
    else:
        typer.echo(f"{facts['n']} samples, {facts['nfe']:.0f} evaluations each, in {facts['out']}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    seed: Annotated[int, typer.Option(help="Of the sampling and the dequantization.")] = 0,
    k: Annotated[
        int, typer.Option("-k", "--dequantizations", min=1, help="Of each image, for bits per dimension.")
    ] = 1,
    divergence: Annotated[
        str | None, typer.Option(help="Instead of the flow's own, as '{name: hutchinson, probes: 4}'.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=4, help="Instead, FID and the like of so many samples that are images.")
    ] = None,
    restored: Annotated[
        int | None, typer.Option(min=2, help="Instead, PSNR and the like of so many restored images.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Of --images or --restored, instead of the flow's own.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of the same: steps of a fixed-step solver.")] = None,
    guidance: Annotated[str | None, typer.Option(help="Of --images, as of sample.")] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="START,END", help="Of --images: times that are guided.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Of --images, instead of a classifier's: inception, or '{name: inception, weights: PATH}'."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a trained flow on the held-out part of its data."""
    if images is not None:
        from fmkit.cli.images import evaluate_images_of, show_images

        found = evaluate_images_of(run, images, seed, solver, steps, guidance, guidance_interval, features, device)
        _answer(found) if as_json else show_images(found)
        return
    if restored is not None:
        from fmkit.cli.images import evaluate_restored, show_restored

        found = evaluate_restored(run, restored, seed, solver, steps, device)
        _answer(found) if as_json else show_restored(found)
        return
    for name, value in {"solver": solver, "steps": steps, "guidance": guidance, "features": features}.items():
        if value is not None:
            raise ConfigError("it is an option of --images; say of how many", f"--{name}")
    from fmkit.cli.training import evaluate_run, show

    figures = evaluate_run(run, seed, k, divergence, quiet=as_json, device=device)
    _answer(figures) if as_json else show(figures)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="report.html in the run folder by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write one page about a run: curves, samples, figures, configuration. It needs no network."""
    from fmkit.cli.page import report as write

    facts = write(run, out or run / "report.html")
    _answer(facts) if as_json else typer.echo(facts["out"])


@runs.command("list")
def runs_list(
    base: Annotated[Path, typer.Argument(help="A folder of runs.")] = Path("runs"), as_json: Json = False
) -> None:
    """The runs in a folder."""
    from fmkit.cli.runs import listing

    rows = listing(base)
    if as_json:
        _answer(rows)
        return
    for row in rows:
        loss = "" if row["loss"] is None else f"  loss {row['loss']:.4f}"
        typer.echo(f"{row['run']}  {row['step']} steps, {'finished' if row['finished'] else 'not finished'}{loss}")


@runs.command("show")
def runs_show(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """What is known of a run: steps, environment, checkpoints, figures; in JSON."""
    from fmkit.cli.runs import details

    _answer(details(run))


@plugins.command("list")
def plugins_list(
    kind: Annotated[str | None, typer.Argument(help="As paths, or solvers.")] = None, as_json: Json = False
) -> None:
    """Everything registered: kind, name, package and version. Imports nothing."""
    from fmkit.cli.plugins import listing

    rows = listing(kind)
    if as_json:
        _answer(rows)
        return
    widths = [max(len(row[key]) for row in rows) for key in ("kind", "name", "package")]
    for row in rows:
        cells = (row["kind"].ljust(widths[0]), row["name"].ljust(widths[1]), row["package"].ljust(widths[2]))
        typer.echo("  ".join((*cells, row["version"])))


@plugins.command("info")
def plugins_info(
    name: Annotated[str, typer.Argument(help="As vp, paths/vp, or package/name.")], as_json: Json = False
) -> None:
    """A part's package, documentation and parameters."""
    from fmkit.cli.plugins import info, show_info

    found = info(name)
    _answer(found) if as_json else typer.echo(show_info(found))


@plugins.command("check")
def plugins_check(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]... [KEY=VALUE]...", help="As vp, paths/vp, or package/name; icfm sigma=0.3."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every part that has laws.")] = False,
    package: Annotated[str | None, typer.Option(help="Every part of one package that has laws.")] = None,
    as_json: Json = False,
) -> None:
    """Try the laws of its kind on a part; ends with 1 if one is broken, or of a part named none could be checked."""
    from fmkit.cli.check import check_words, ok, show

    rows = []
    for named, findings in check_words(words or [], everything, package):
        rows.append((named, findings))
        if not as_json:
            typer.echo(show(findings))
    if as_json:
        _answer([row for _, findings in rows for row in findings])
    if not all(ok(findings, named) for named, findings in rows):
        raise typer.Exit(1)


@config.command("show")
def config_show(
    target: Annotated[str, typer.Argument(help="A recipe, a YAML file or a run folder.")],
    words: Words = None,
    as_json: Json = False,
) -> None:
    """The whole configuration that a target and its overrides add up to."""
    from fmkit.cli.training import layers_of
    from fmkit.config import dump, settings_of, validate

    checked = validate(layers_of(target, words or [])[0])
    if as_json:
        _answer({**checked.model_dump(), "trainer": settings_of(checked).model_dump(mode="json", exclude={"seed"})})
    else:
        typer.echo(dump(checked), nl=False)


@config.command("schema")
def config_schema() -> None:
    """The JSON schema of a configuration, for editors."""
    from fmkit.schema import schema

    _answer(schema())


@bench.callback()
def bench_top() -> None:
    """Published tables, measured again."""


@bench.command("transport2d")
def bench_transport2d(
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this one, as ot-cfm, or one of your own: NAME={path: ..., coupling: ...}; may be given again."
        ),
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Only this one, as moons; may be given again.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this one; may be given again. 42 to 46.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of training; fewer make another table.")] = 20_000,
    points: Annotated[int, typer.Option(min=2, help="Of each set; fewer make another table.")] = 10_000,
    out: Annotated[Path, typer.Option(help="The folder of the results; what is there is not run again.")] = Path(
        "runs/transport2d"
    ),
    table: Annotated[bool, typer.Option("--table", help="Run nothing: show what there is.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the page and its results into this folder too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
    as_json: Json = False,
) -> None:
    """The two-dimensional transport table of [SF]2M: W2 and path energy, cell by cell, over five seeds."""
    from fmkit.cli.bench import run_cells, show, write_page

    results = run_cells(row, data, seed, steps, points, out, page, table, quiet=quiet or as_json)
    if page is not None:
        write_page(results, page)
    if as_json:
        _answer(results)
    elif not quiet:
        show(results)


@bench.command("paper")
def bench_paper(
    data: Annotated[
        str,
        typer.Option(
            help="Labelled images: digits, mnist-5k, fashion-mnist, ..., or '{name: fashion-mnist, size: 14}'."
        ),
    ] = "digits",
    budget: Annotated[str, typer.Option(help="Training time of each method, as 90s, 2m or 1h.")] = "2m",
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only ddpm, sm, scoreflow, fm-diffusion or fm-ot; may be given again."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this one; may be given again. 0.")] = None,
    preset: Annotated[str, typer.Option(help="Of the UNet: tiny, small, medium, cifar10, ...")] = "tiny",
    batch: Annotated[int, typer.Option(min=1, help="Images in a training step.")] = 128,
    samples: Annotated[int, typer.Option(min=4, help="Images generated for each FID.")] = 500,
    nll_images: Annotated[int, typer.Option(min=2, help="Held-out images whose likelihood is taken.")] = 100,
    dequantizations: Annotated[int, typer.Option(min=1, help="K, of each of these.")] = 5,
    device: Device = "auto",
    features: Annotated[
        str | None,
        typer.Option(help="Of FID, instead of a classifier's: inception, or '{name: inception, weights: PATH}'."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the results; runs/paper-DATA by default.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Run nothing: show what there is.")] = False,
    page: Annotated[Path | None, typer.Option(help="Write the page and its results into this folder too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
    as_json: Json = False,
) -> None:
    """The paper's experiment on images: five ways of training one network, with one budget."""
    from fmkit.arguments import device_of
    from fmkit.benches.paper_protocol import Protocol, seconds_of
    from fmkit.cli.paper import run_cells, show, write_page

    protocol = Protocol(
        data,
        seconds_of(budget),
        preset,
        batch,
        samples,
        nll_images,
        dequantizations,
        noises=min(64, samples),
        device=device_of(device),
        features=features,
    )
    folder = Path("runs") / f"paper-{protocol.stem}" if out is None else out
    results = run_cells(protocol, method, seed, folder, page, table, quiet=quiet or as_json)
    if page is not None:
        write_page(results, folder, page)
    if as_json:
        _answer(results)
    elif not quiet:
        show(results)


def _answer(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
