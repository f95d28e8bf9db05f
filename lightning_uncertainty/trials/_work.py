"""Trials taken one by one by however many processes share their folder, each trial by one of them."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

from lightning_uncertainty.trials._folder import TrialFolder
from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._trial import Trial

__all__ = ["PAUSE", "Work"]

PAUSE = 0.5  # seconds between looks at what others hold


class Work:
    """What is to be done of some plans.

    Args:
        folder: where trials are kept and claimed.
        plans: what there should be.
        retry_failed: whether what has failed before this call is fitted again.
        lasting: whether the folder outlives this call.

    Attributes:
        trials: what is over, by plan.
        missing: what was not when this was made.
        waits: is told the plans that others hold, when there is nothing else to do.
    """

    def __init__(
        self, folder: TrialFolder, plans: Sequence[Plan], retry_failed: bool = False, *, lasting: bool = True
    ) -> None:
        self.folder, self.plans, self._retry, self._lasting = folder, tuple(plans), retry_failed, lasting
        self.waits: Callable[[Sequence[Plan]], None] = lambda held: None
        found = {plan: folder.find(plan) for plan in self.plans}
        self.trials = {plan: trial for plan, trial in found.items() if trial is not None}
        self._known = {plan: trial.attempt for plan, trial in self.trials.items() if trial.failed}
        self.missing = [plan for plan in self.plans if self._wanted(plan)]

    def do(self, run: Callable[[Plan, int], Trial], limit: int | None = None) -> Iterator[Trial]:
        """Run what no other process runs, keep it, and yield it; wait at the end for what others are at.

        Args:
            run: from a plan, and the number of this attempt, to the trial.
            limit: how many to run at most; with one, nobody is waited for.

        Raises:
            OSError: a trial cannot be written.
            KeyboardInterrupt: after it was told what is kept.
            SystemExit: likewise, as at SIGTERM.
        """
        try:
            yield from self._do(run, limit)
        except (KeyboardInterrupt, SystemExit):
            print(f"\ninterrupted: {self.kept()}", file=sys.stderr, flush=True)
            raise

    def kept(self) -> str:
        """Return in a sentence what is kept, and how to go on."""
        count = f"{len(self.trials)} of {len(self.plans)} trials are kept"
        if not self._lasting:
            return f"{count} in memory alone; give a folder to go on where it was"
        return f"{count} in {self.folder.path}; the same call goes on with the others"

    def _do(self, run: Callable[[Plan, int], Trial], limit: int | None) -> Iterator[Trial]:
        count, waiting = 0, list(self.missing)
        while waiting:
            held, before = [], count
            for plan in waiting:
                if limit is not None and count >= limit:
                    return
                with self.folder.claim(plan) as ours:
                    if not ours:
                        held.append(plan)
                        continue
                    self._find(plan)  # who held it may have finished since
                    if not self._wanted(plan):
                        continue
                    trial = run(plan, self._known.get(plan, 0) + 1)
                    self.folder.keep(plan, trial)
                self.trials[plan] = trial
                count += 1
                if trial.failed:
                    warnings.warn(
                        f"trial {str(plan)!r} failed: {trial.error}; the others go on, and retry_failed=True fits it "
                        "again",
                        stacklevel=2,
                    )
                yield trial
            if len(held) == len(waiting) and limit is not None:
                return
            if held and count == before:  # what is held is not of long ago
                self.waits(held)
                time.sleep(PAUSE)
            waiting = held

    def _find(self, plan: Plan) -> None:
        trial = self.folder.find(plan)
        if trial is not None:
            self.trials[plan] = trial

    def _wanted(self, plan: Plan) -> bool:
        trial = self.trials.get(plan)
        return trial is None or (self._retry and trial.failed and trial.attempt == self._known.get(plan))
