"""The error that is the user's to fix."""


class InputError(ValueError):
    """The user's configuration or data is wrong; the message names the key or file and the fix.

    Jobs turn it into one line on stderr and exit code 2.
    """
