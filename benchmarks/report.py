"""How long a report of a long run takes, beside another checkout: `benchmarks/report.py --against CHECKOUT`.

Both read the same file of CSVLogger and write the page, in turn, each time in a process of its own; what is printed is
the median of the ratios of neighbours, which a machine that is busy otherwise does not move.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
KINDS = ("loss", "sigma", "sigma_gap", "weight", "loss_share")
TIMED = """
import sys, time
from lightning_uncertainty.dashboards import read_run, write_report
began = time.process_time()
write_report(read_run(sys.argv[1]), sys.argv[1] + ".html")
print(time.process_time() - began)
"""


def write_rows(path: Path, rows: int, tasks: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *(f"{kind}/task_{task}" for kind in KINDS for task in range(tasks))])
        for row in range(rows):
            values = (1.5 + math.sin(row / (50 + 7 * column)) for column in range(len(KINDS) * tasks))
            writer.writerow([row, *(f"{value:.9g}" for value in values)])


def seconds(checkout: Path, run: Path) -> float:
    """Return the CPU time that a checkout needs."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", TIMED, run], env=environment, cwd=checkout, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        run = Path(folder) / "metrics.csv"
        write_rows(run, asked.rows, asked.tasks)
        pairs = [[seconds(checkout, run) for checkout in (ROOT, asked.against) if checkout] for _ in range(asked.pairs)]
    print(f"{asked.rows:,} rows x {asked.tasks} tasks: {median(own for own, *_ in pairs):.2f} s of CPU time")
    if asked.against:
        ratios = sorted(own / other for own, other in pairs)
        print(f"of {asked.against}: {median(other for _, other in pairs):.2f} s; ratio {median(ratios):.3f} ({ratios})")


if __name__ == "__main__":
    main()
