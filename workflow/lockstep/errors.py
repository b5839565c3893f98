"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one line that says what, where, what was expected, what to do.

    The command line prints it without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # what a library said may be of several lines
