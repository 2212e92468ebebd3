"""The one error a user of screpro is meant to see."""

__all__ = ["ScreproError"]


class ScreproError(Exception):
    """Something the user can put right. States the rule, what arrived, and the fix.

    The command line prints it without a traceback and exits with code 2.

    Parameters
    ----------
    rule
        What has to hold, as a sentence.
    got
        What arrived instead.
    fix
        What to do about it.
    """

    def __init__(self, rule: str, *, got: str, fix: str):
        self.rule, self.got, self.fix = rule, got, fix
        super().__init__(f"{rule}\n  got: {got}\n  fix: {fix}")
