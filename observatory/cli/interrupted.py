"""What an interrupted command says: what it has changed, and what continues it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

AGAIN = "run the command again, it continues"
# By the words of the command; commands that are not listed change nothing. A deployment says itself what happened.
KEPT: Mapping[str, str] = {
    "up": f"what was brought up is kept; {AGAIN}",
    "bootstrap": f"what was built is kept; {AGAIN}",
    "down": "run `observatory down` again to finish; while the data is there, `observatory up` restores the stack",
    "deploy database": f"applied migrations stay applied; {AGAIN}",
    "deploy application": "the fleets and their traffic were not changed",
    "release deploy": f"applied migrations stay applied, the fleets and their traffic were not changed; {AGAIN}",
    "release approve": "`observatory release list` shows whether the release was approved",
    "rollback": "`observatory status` shows the traffic weights; run the command again, it continues",
    "rollout": "the request may have been sent: see `observatory status`",
    "backup create": "the backup that was being made was not finished; finished ones are kept",
    "backup flashback": f"missing rows are inserted all at once, or none; {AGAIN}",
    "backup discard": f"what was removed is gone; {AGAIN}",
    "rotate-passwords": f"finished rotations stay in use; {AGAIN}",
    "certificates renew": f"renewed certificates stay in use; {AGAIN}",
    "key create": "the key may exist: see `observatory key list`, and revoke it there",
    "key revoke": "the key may be revoked: see `observatory key list`",
    "data sample": f"the target may have a part of the sample; {AGAIN}",
    "scheduler run": "the job did not finish; its next run repeats it",
    "silence": "the silence may have changed: see `observatory silence list`",
}


def message_of(ended: BaseException, words: Sequence[str]) -> str:
    """Return the message of an interrupted command.

    Args:
        ended: what ended it; the notes of the interrupt in its chain say what happened.
        words: of the command line.
    """
    cause: BaseException | None = ended
    while cause is not None:
        if notes := getattr(cause, "__notes__", ()):
            return f"interrupted; {'; '.join(notes)}"
        cause = cause.__cause__ or cause.__context__
    names = [word for word in words if not word.startswith("-")]
    candidates = (" ".join(names[:2]), *names[:1])
    return f"interrupted; {next((KEPT[name] for name in candidates if name in KEPT), 'nothing was changed')}"
