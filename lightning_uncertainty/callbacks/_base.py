"""The Callback class of whichever Lightning packages are installed."""

from __future__ import annotations

from importlib.util import find_spec

from pytorch_lightning import Callback

__all__ = ["AnyCallback"]

if find_spec("lightning") is not None:
    from lightning.pytorch import Callback as OtherCallback

    class AnyCallback(Callback, OtherCallback):  # type: ignore[misc, valid-type]
        """A callback for the Trainers and the CLIs of both `pytorch_lightning` and `lightning.pytorch`."""

else:

    class AnyCallback(Callback):  # type: ignore[no-redef]
        """A callback for the Trainer and the CLI of `pytorch_lightning`."""
