"""``trainvitals demo``: hands over to `trainvitals.integrations.demo`, which needs torch and TRL."""

from __future__ import annotations

from trainvitals.cli import UserError

_NEEDED = ("torch", "transformers", "trl", "datasets", "accelerate")


def run_demo(argv: list[str]) -> int:
    """Run the demo with its own options.

    Raises:
        UserError: If a package that it trains with is not installed.
    """
    try:
        from trainvitals.integrations.demo import main
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _NEEDED:
            raise _missing(missing) from None
        raise
    try:
        return main(argv)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _NEEDED:
            raise _missing(missing) from None
        raise


def _missing(name: str) -> UserError:
    return UserError(f"the demo trains a tiny model and needs {name}, which is not installed", "pip install 'trainvitals[trl]'")
