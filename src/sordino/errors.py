"""Errors that the user can correct."""


class UserError(Exception):
    """Something in the input that the user can correct.

    The message is one sentence that names the file or the argument and what to do. The command line
    prints it to standard error without a traceback and exits with status 2.
    """
