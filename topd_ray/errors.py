"""The errors a person sees: each says which field or file, the value seen, and the way
out.

Every error is built from one string, so that it survives pickling between actors.
"""


def printable(text: str) -> str:
    """Control characters made visible: data and models do not talk to anybody's
    terminal.
    """
    return "".join(
        (
            one
            if one in "\n\t" or one.isprintable()
            else one.encode("unicode_escape").decode()
        )
        for one in text
    )


class TopdError(Exception):
    """Anything topd_ray raises on purpose; the command line prints the message, no
    traceback.
    """

    exit_code = 1


class UserError(TopdError):
    """A mistake in a config, a data file or a model folder: fixable by whoever started
    the run.
    """

    exit_code = 2


class DeadlineError(TopdError):
    """A wait ran out; the message names what was awaited and who owed it."""


class ActorFailedError(TopdError):
    """An actor died or raised; the message names the actor, the call and the cause."""


class ActorDiedError(ActorFailedError):
    """The process of an actor is gone, and what it owed can be asked of another."""


class LostObjectError(TopdError):
    """What an actor had answered went with the machine that held it; only a checkpoint
    is left.
    """


class BadStepsError(TopdError):
    """The updates of too many steps in a row could not be trusted (`health`)."""
