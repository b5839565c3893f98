"""The one exception that a user is meant to read, and what is quoted of others."""


class UserError(Exception):
    """Something the user can mend: one line that says what, where, what was expected, what to do.

    The command line prints it without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # what a library said may be of several lines


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error) or type(error).__name__).splitlines()[0]
