"""Examples that run as they are, with `python -m`; each is one file to read in one sitting."""
