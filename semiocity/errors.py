"""Errors that are the user's to mend: the command line prints their message alone and exits with status 2."""


class UserError(Exception):
    """Bad input, configuration or state, found before anything was harmed.

    The message says what is wrong, where (file, dotted key, row key), and what would be right.
    """


class Stopped(Exception):
    """Work was told to end early, amid something that the next attempt begins anew, or goes on with."""


class BadNode(UserError):
    """This machine lacks what the job needs and other machines have: the work should go on elsewhere."""


class OutOfMemory(UserError):
    """The memory that was asked for does not suffice, however little is done at a time."""
