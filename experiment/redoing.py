"""Finished stages that are not as they were written, and what was made from them: done again, on request."""

from collections.abc import Sequence

from rich.console import Console

from command.errors import RequestError
from command.files import shown
from experiment.claims import Claims
from experiment.stages import Stage, StageStore

__all__ = ["check_or_redo", "delete_stage", "reasons_to_redo"]


def check_or_redo(
    stages: Sequence[Stage], store: StageStore, console: Console, is_quick: bool = False, is_redone: bool = False
) -> None:
    """Check the finished stages; delete those that are to be done again, and say which and why.

    Args:
        stages: In an order in which they can run.
        store: Theirs.
        console: Gets a line for each stage that is deleted.
        is_quick: As for `StageStore.check`.
        is_redone: Whether any may be deleted.

    Raises:
        RequestError: If one was changed and none may be deleted, or another process works on one.
    """
    if not is_redone:
        try:
            store.check(stages, is_quick)
        except RequestError as error:
            raise type(error)(f"{error}, or with --redo") from error
        return
    reasons = reasons_to_redo(stages, store, is_quick)
    for stage in reversed(stages):  # a kill in between leaves nothing that was made from what is gone
        if why := reasons.get(stage.hash):
            console.print(
                f"redo {store.folder(stage).name}: {shown(why)}", markup=False, highlight=False, soft_wrap=True
            )
            delete_stage(store.folder(stage).name, store)


def reasons_to_redo(stages: Sequence[Stage], store: StageStore, is_quick: bool = False) -> dict[str, str]:
    """Return why stages that are finished or begun must be done again, by their hashes."""
    reasons: dict[str, str] = {}
    for stage in stages:
        source = next((parent for parent in stage.inputs if parent.hash in reasons), None)
        if source and (store.is_finished(stage) or store.is_begun(stage)):
            reasons[stage.hash] = f"made from {store.folder(source).name}"
        elif fault := store.fault(stage, is_quick):
            reasons[stage.hash] = fault
    return reasons


def delete_stage(name: str, store: StageStore) -> None:
    """Delete a stage by the name of its folder.

    Raises:
        RequestError: If another process works on it, or it is no folder.
    """
    with Claims(store.root).claimed(name) as is_ours:
        if not is_ours:
            raise RequestError(f"{store.root / name}: another process works on it; wait for it, or end it")
        store.delete(name)
