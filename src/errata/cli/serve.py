"""`errata serve MODEL --port 8000`; `errata audit STORE`; `errata key NAME --role edit`."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options, screen
from errata.cli.serving import Served
from errata.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI


STORE = "sqlite:///edits.db"


def serve(
    model: options.Opened,
    store: Annotated[
        str,
        typer.Option(help="The database of edits: sqlite:///FILE or postgresql+psycopg://..."),
    ] = STORE,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="API keys (`errata key`); needed beyond this machine.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Requests of each key, at most, like 600/minute.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="What is not written, whoever asks: see serve.md.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name in the API; by default its folder's.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("-m", "--method", help="See `errata methods`; folio by default.")
    ] = None,
    settings: options.Settings = None,
    preset: options.Preset = None,
    snapshots: Annotated[
        Path | None,
        typer.Option(help="A folder for snapshots; by default beside the file of --store."),
    ] = None,
    snapshot_every: Annotated[
        int, typer.Option(min=1, help="Changes after which a snapshot is written.")
    ] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Requests answered together, at most.")] = 16,
    lanes: Annotated[int, typer.Option(min=1, help="Batches that run side by side.")] = 2,
    settle: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD", help="In idle time, move edits into weights by it, and judge that."
        ),
    ] = None,
    settle_after: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long nothing was asked by then.")
    ] = 60.0,
    settle_cases: Annotated[
        Path | None, typer.Option(help="JSON lines: edits with rephrases, and locality to keep.")
    ] = None,
    console: Annotated[
        bool, typer.Option("--console", help="Serve a page at /console: ask, edit, look back.")
    ] = False,
    executor: Annotated[
        str, typer.Option(help="process: one server; ray: replicas on Ray Serve.")
    ] = "process",
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Servers, with --executor ray; 2 by default.")
    ] = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
) -> None:
    """Serve a model over HTTP, as OpenAI does, and correct it while it answers."""
    _check_installed()
    if console:
        _check_console_installed()
    from errata.config import check_choice, check_device, check_dtype

    check_dtype(dtype)
    check_device(device_map)
    check_choice("--executor", executor, ("process", "ray"))
    served = Served(
        model, store, keys, rate, policy, name or Path(model).name, method, tuple(settings or ()),
        preset, snapshots, snapshot_every, batch, lanes, settle, settle_after, settle_cases,
        console, dtype, device_map,
    )  # fmt: skip
    if not served.keys_held() and not _is_here(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, and without --keys everyone may "
            "edit; give keys (`errata key NAME`), or leave --host out."
        )
    if executor == "ray":
        if port == 0:
            raise UsageError("--executor ray finds no free port by itself; give a port.")
        from errata.serve.replicas import serve_replicas

        here, count = served.absolute(), replicas or 2
        about = f"{count} replicas of {served.name}"

        def listening(address: str) -> None:
            screen.err.print(f"serving {address}/v1 ({about}); Ctrl-C ends it", markup=False)

        _listening(host, port).close()  # Ray would say so in many lines
        serve_replicas(lambda: here.made()[0], host, port, count, here.on_gpu, listening)
        return
    if replicas is not None:
        raise UsageError("--replicas are servers on Ray Serve: give --executor ray, too.")
    app, service = served.made()
    about = f"{len(service.edits)} edits, version {service.version}"
    _run(app, host, port, about, console)


def audit(
    store: Annotated[str, typer.Argument(help="The database of edits.")] = STORE,
) -> None:
    """Check that no entry of a ledger was changed, taken out or put in."""
    _check_installed()
    from errata.serve.ledger import Ledger

    ledger = Ledger(store)
    count = ledger.verify()
    last = ledger.entries(after=count - 1)[0].hash if count else "none"
    screen.say(f"{count} entries, each as it was written; the last one's hash is {last}")


def key(
    name: Annotated[str, typer.Argument(help="Who holds it; the ledger names them.")],
    role: Annotated[str, typer.Option(help="ask, edit (undo too), admin (go back too).")] = "ask",
) -> None:
    """Make an API key: it is shown once, with the lines for the file of --keys."""
    _check_installed()
    from errata.config import check_choice
    from errata.serve.keys import Role, digest_of, new_key

    check_choice("--role", role, tuple(each.name.lower() for each in Role))
    if not name.strip() or len(name) > 200 or any(sign in name for sign in '"\\\n'):
        raise UsageError("a name has 1 to 200 characters, and no quotes, backslashes or lines.")
    made = new_key()
    screen.err.print(f"the key, which is kept nowhere: {made}", markup=False)
    screen.say(f'[[key]]\nname = "{name}"\nrole = "{role}"\nsha256 = "{digest_of(made)}"\n')


def _check_installed() -> None:
    try:
        import alembic  # noqa: F401
        import fastapi  # noqa: F401
        import limits  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError("serving needs libraries: pip install 'errata[serve]'.") from error


def _check_console_installed() -> None:
    try:
        import nicegui  # noqa: F401
    except ImportError as error:
        raise UsageError("--console needs libraries: pip install 'errata[console]'.") from error


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _run(app: FastAPI, host: str, port: int, about: str, console: bool) -> None:
    """Listen until a signal ends it; say where, once requests are taken."""
    import uvicorn

    listening = _listening(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    page = f"; the console is {address}/console" if console else ""
    screen.err.print(f"serving {address}/v1 ({about}){page}; Ctrl-C ends it", markup=False)
    settings = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(settings).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be listened on ({error.strerror}).") from error
