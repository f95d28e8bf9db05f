"""What a Trainer predicts, written as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import BasePredictionWriter

from lightning_uncertainty.predictions.written import close_folder, open_folder, write_batch

__all__ = ["PredictionWriter", "is_writer"]

if find_spec("lightning") is not None:
    from lightning.pytorch.callbacks import BasePredictionWriter as OtherWriter

    class _AnyWriter(BasePredictionWriter, OtherWriter):  # type: ignore[misc, valid-type]
        """A writer for the Trainers of both `pytorch_lightning` and `lightning.pytorch`."""

else:

    class _AnyWriter(BasePredictionWriter):  # type: ignore[no-redef]
        """A writer for the Trainer of `pytorch_lightning`."""


class PredictionWriter(_AnyWriter):
    """Writes what `predict_step` returns, a file a batch, with the places of its rows in the dataset.

    `predictions.gather_predictions` puts them in order, of one process or of several, and so does the command `gather`.
    With `trainer.predict(..., return_predictions=False)` memory is that of one batch. Files of an earlier run in the
    folder are removed.

    Args:
        folder: of the files; `predictions` beside the logs where None.

    Example:
        >>> import tempfile, torch
        >>> from pytorch_lightning import LightningModule, Trainer
        >>> from lightning_uncertainty.predictions import gather_predictions
        >>> class Double(LightningModule):
        ...     def predict_step(self, batch, batch_idx):
        ...         return {"double": 2 * batch}
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        >>> folder = tempfile.mkdtemp()
        >>> trainer = Trainer(accelerator="cpu", callbacks=[PredictionWriter(folder)], **quiet)
        >>> loader = torch.utils.data.DataLoader(torch.arange(5), batch_size=2)
        >>> trainer.predict(Double(), loader, return_predictions=False)
        >>> gather_predictions(folder).predictions
        {'double': tensor([0, 2, 4, 6, 8])}
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self._at: Path | None = None
        self._batches = 0
        self._seen: Any = None  # the places that Lightning last noted; those of a loader of which it knows none

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the folder."""
        self._at = self.folder_of(trainer)
        self._batches, self._seen = 0, trainer.predict_loop.current_batch_indices
        if trainer.is_global_zero:
            open_folder(self._at)
        trainer.strategy.barrier("predictions")
        self._at.mkdir(parents=True, exist_ok=True)  # on a machine of its own

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch."""
        known = batch_indices is not None and batch_indices is not self._seen and len(batch_indices) > 0
        self._seen = batch_indices
        assert self._at is not None
        write_batch(
            self._at,
            prediction,
            batch_indices if known else None,
            dataloader=dataloader_idx,
            batch=batch_idx,
            rank=trainer.global_rank,
        )
        self._batches += 1

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Note that all is written."""
        assert self._at is not None
        close_folder(self._at, self._batches, rank=trainer.global_rank, processes=trainer.world_size)
        trainer.strategy.barrier("predictions written")

    def folder_of(self, trainer: Any) -> Path:
        """Return where the files of a Trainer are; all processes come here alike."""
        logs = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast
        return (logs / "predictions" if self.folder is None else Path(self.folder)).resolve()


def is_writer(callback: Any) -> bool:
    """Whether a callback writes predictions."""
    return isinstance(callback, _AnyWriter.__bases__)
