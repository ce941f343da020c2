"""Errors a user can act on."""


class AffectError(ValueError):
    """Wrong input: the message names the place and the fix.

    The command line prints the message without a traceback and exits with status 2.
    """
