"""Commands as users type them, each a process of its own, forked from one that has imported what is slow.

A command takes as long as its work; the 4 s of torch, pandas and matplotlib are spent once. What is promised
of the imports themselves, of signals and of Ray has processes that start from nothing.
"""

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SLOW = """
    hydra.main hydra.core.plugins scipy.stats scipy.optimize matplotlib.backends.backend_pdf
    fontTools.subset jinja2 rich.progress analysis.advice_text analysis.comparison analysis.paper_report
    analysis.report sweeps.derivation sweeps.serial sweeps.study
"""
_servers: list[subprocess.Popen] = []


def run(
    *words: object, cwd: Path, env: dict[str, str] | None = None, renders: bool = True
) -> subprocess.CompletedProcess:
    """`python words` in `cwd`: a program's path, `-m` and a module or `-c` and code; then its arguments."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        order: dict[str, Any] = {"argv": list(map(str, words)), "cwd": str(cwd), "renders": renders}
        order["env"] = env or dict(os.environ)
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps({**order, "out": str(out), "err": str(err)}) + "\n")
        server.stdin.flush()
        try:
            code = int(server.stdout.readline())
        except (
            BaseException
        ):  # a test that took too long: the answer to this order must not be the next one's
            server.kill()
            _end()
            raise
        return subprocess.CompletedProcess(order["argv"], code, out.read_text(), err.read_text())


def _server() -> subprocess.Popen:
    if not _servers:
        pipe = subprocess.PIPE
        _servers.append(subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True))
        atexit.register(_end)
    return _servers[0]


def _end() -> None:
    while _servers:
        _servers.pop().communicate()  # at the end of its orders it ends


def _serve() -> dict[str, Any] | None:
    """Answers each order with the exit code of its process; returns an order in that process only."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(code, flush=True)
    return None


def _become(order: dict[str, Any]) -> None:
    """Does what a fresh interpreter with these words does."""
    for descriptor, name in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), descriptor)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if not order["renders"]:
        unrender(setattr)
    match order["argv"]:
        case ["-c", code, *more]:
            sys.argv, sys.path[0] = ["-c", *more], ""
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case ["-m", module, *more]:
            sys.argv, sys.path[0] = [module, *more], os.getcwd()
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [program, *more]:
            sys.argv, sys.path[0] = [program, *more], str(Path(program).parent)
            runpy.run_path(program, run_name="__main__")


def unrender(set_attribute: Callable[..., None]) -> None:
    """Figures are made as ever, but no picture of them: rendering is what takes long."""
    from matplotlib.figure import Figure

    from analysis.figures import style

    def nothing(self, file, **_):
        file.write_bytes(b"") if hasattr(file, "write_bytes") else file.write(b"")

    set_attribute(Figure, "savefig", nothing)
    set_attribute(style, "_lay_out", lambda figure: None)


def _prepare() -> None:
    sys.path.insert(0, str(ROOT))
    for module in SLOW.split():
        __import__(module)
    from hydra.core.plugins import Plugins

    Plugins.instance()


def _finish(order: dict[str, Any]) -> None:
    """Ends as an interpreter does, but for taking apart what it shares with the one it was forked from."""
    try:
        _become(order)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _prepare()
    gc.collect()
    gc.freeze()  # else a child's first collection copies every page
    if (taken := _serve()) is not None:
        _finish(taken)
