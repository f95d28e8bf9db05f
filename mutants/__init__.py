"""Small faults that the tests must see: `faults.py` lists them, `python -m mutants` tries them one at a time."""
