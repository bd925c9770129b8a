"""The one exception whose text is meant for the user."""


class UserError(Exception):
    """Something the user can mend: bad input, a broken rule, a missing file.

    The message is one line that states the rule, what was found, and the remedy. The command
    line prints it without a traceback and exits with status 2.
    """
