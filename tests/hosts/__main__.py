"""Run the tests of hosts, each in an environment of its own: `python -m tests.hosts --into .venv/hosts [host ...]`.

A host is a file of pinned requirements beside this one; its environment has torch, these, and this package, which
brings nothing that is not pinned. An environment is made anew when its requirements change, and gets the package
anew when the package's do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> int:
    """Make what is missing, run every host's tests, and say what each took; return 1 where one failed."""
    hosts = sorted(path.stem for path in HERE.glob("*.txt"))
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__.partition("\n")[0])
    parser.add_argument("hosts", nargs="*", help=f"of {', '.join(hosts)}; all where none is named")
    parser.add_argument("--into", type=Path, default=ROOT / ".venv" / "hosts", help="folder of their environments")
    given = parser.parse_args()
    if unknown := set(given.hosts) - set(hosts):
        parser.error(f"no requirements of {', '.join(sorted(unknown))} in {HERE}")
    ended = {host: run(host, environment(host, given.into.resolve())) for host in given.hosts or hosts}
    print("\n".join(f"{host:24} {said}" for host, said in ended.items()))
    return int(any(said.startswith("failed") for said in ended.values()))


def environment(host: str, folder: Path) -> Path:
    """Return the Python of a host's environment, which is made where there is none of these requirements."""
    into, pinned, constraints = folder / host, HERE / f"{host}.txt", ROOT / "constraints.txt"
    theirs, ours = _made_of(constraints, pinned), f"{_made_of(ROOT / 'pyproject.toml')} {ROOT}"
    stamp, python = into / "made-of", into / "bin" / "python"
    made = stamp.read_text().splitlines() if stamp.exists() else []
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if made[:1] != [theirs]:
        print(f"-- {host}: an environment", flush=True)
        shutil.rmtree(into, ignore_errors=True)
        venv.create(into, with_pip=True)
        for what in (["--upgrade", "pip>=25"], ["-r", constraints], ["-c", constraints, "-r", pinned]):
            subprocess.run([*install, *what], check=True)
    if made != [theirs, ours]:
        subprocess.run([*install, "--no-deps", "--editable", ROOT], check=True)
        subprocess.run([python, "-m", "pip", "check", "--disable-pip-version-check"], check=True)
        stamp.write_text(f"{theirs}\n{ours}\n")
    return python


def _made_of(*sources: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def run(host: str, python: Path) -> str:
    """Run a host's tests; return how they ended."""
    print(f"-- {host}", flush=True)
    began = time.monotonic()
    own = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    # hosts, and what they bring, warn of much that is not ours to mend
    options = ["-p", "no:cacheprovider", "-W", "default", "--durations", "3"]
    command = [python, "-m", "pytest", *options, HERE / f"test_{host.replace('-', '_')}.py"]
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}).returncode
    return f"{'passed' if code == 0 else 'failed'} in {time.monotonic() - began:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
