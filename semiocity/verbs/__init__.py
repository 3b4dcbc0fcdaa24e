"""The verbs of the command line, one file each; `semiocity/cli.py` names them."""
