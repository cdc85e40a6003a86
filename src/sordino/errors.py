"""Errors that are the user's to mend."""


class UserError(Exception):
    """Something in the input can be mended by the user.

    The message is one sentence that names the file or the flag and the mend. The command line
    prints it to standard error without a traceback and exits with status 2.
    """
