"""Examples that run as they are, with `python -m`; of files with an underscore the `scenes` and `streets` are made."""
