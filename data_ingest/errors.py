"""The error for what only the user can put right."""


class InputError(ValueError):
    """The input or the configuration is unusable.

    The message names the file, key or field, and says what to do about it. The command line
    prints it without a traceback and exits with code 2.
    """
