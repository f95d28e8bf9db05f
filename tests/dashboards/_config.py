"""The entry of a run's config."""

CONFIG = {"uncertainty": {"weighting": "UncertaintyWeighting()", "sigma_is": {"depth": "RMSE [label]"}}}
