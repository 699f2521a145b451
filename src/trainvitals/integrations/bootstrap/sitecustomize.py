"""What Python imports at its start in every process below ``trainvitals run``: watch for a trainer, touch nothing else.

`site` imports ``sitecustomize`` from the first folder of ``PYTHONPATH`` that has one, which is this folder. A sitecustomize
that this one hides is run first, as if we were not there. Then one finder waits for the module of a known trainer to be
imported and wraps the method that starts training, so that `trainvitals.integrations.autoattach` sees the trainer before its
first step. Nothing of trainvitals and nothing heavy is imported until a training really starts, and no error of ours leaves
this file. It must run in any Python from 3.7 on: a training may start helpers in other environments.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # as type checkers know it, without the milliseconds of importing typing in every process
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
TRAINERS = {
    "transformers.trainer": ("Trainer", "train"),
    "lightning.pytorch.trainer.trainer": ("Trainer", "fit"),
    "pytorch_lightning.trainer.trainer": ("Trainer", "fit"),
}
"""Module, class and the method that trains. Subclasses with a method of their own (TRL's PPO) are wrapped as they are made."""
MARK = "_trainvitals_run_saw_it"


def notice(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write("[trainvitals] " + text + "\n")


def start_watching() -> None:
    """Put the finder in place, and leave a mark for ``trainvitals run`` that this Python could be looked into."""
    if "TRAINVITALS_RUN" not in os.environ:
        return  # PYTHONPATH was passed on, what to do was not
    sys.meta_path.insert(0, Finder())
    leave_mark("python")


def leave_mark(name: str) -> None:
    """An empty file in the folder of ``trainvitals run``, if that is on this machine."""
    folder = os.environ.get("TRAINVITALS_RUN_FOLDER")
    if not folder:
        return
    try:
        with open(os.path.join(folder, name), "a"):
            pass
    except OSError:
        return


class Finder:
    """A path finder that finds nothing itself: it lets the others find a trainer's module and is called once it has run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec that the other finders give, with our hook behind its loader; None for every other module."""
        if name not in TRAINERS:
            return None
        for finder in sys.meta_path:
            find = None if isinstance(finder, Finder) else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                try:
                    watch(spec.loader, *TRAINERS[name])
                except Exception as error:
                    notice(f"cannot watch {name}: {error!r}")
                return spec
        return None


def watch(loader: Any, cls: str, method: str) -> None:
    """Have `loader` wrap ``cls.method`` when it has executed its module."""
    execute = loader.exec_module

    def exec_module(module: Any) -> None:
        execute(module)
        try:
            wrap(getattr(module, cls), method)
        except Exception as error:
            notice(f"cannot wrap {cls}.{method}: {error!r}. Training goes on unobserved.")

    loader.exec_module = exec_module


def wrap(cls: Any, method: str) -> None:
    """Wrap the training method of a class and of every subclass that defines its own."""
    own = vars(cls).get("__init_subclass__")

    def init_subclass(__sub: Any, **kwargs: Any) -> None:
        if own is not None:
            own.__func__(__sub, **kwargs)
        else:
            super(cls, __sub).__init_subclass__(**kwargs)
        if method in vars(__sub):
            _wrap_one(__sub, method)

    _wrap_one(cls, method)
    cls.__init_subclass__ = classmethod(init_subclass)


def _wrap_one(cls: Any, method: str) -> None:
    import functools  # milliseconds that only a process with a trainer in it pays

    original = vars(cls)[method]

    @functools.wraps(original)
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        failed = None if getattr(self, MARK, False) else before(self)
        if failed is None:
            return original(self, *args, **kwargs)
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            failed(error)
            raise

    setattr(cls, method, train)


def before(trainer: Any) -> Callable[[BaseException], None] | None:
    """Attach to a trainer that is about to train for the first time; what to call if its training ends with an exception."""
    try:
        setattr(trainer, MARK, True)
        from trainvitals.integrations.autoattach import before_training

        return before_training(trainer)
    except Exception as error:
        advice = f" Is trainvitals installed for {sys.executable}?" if isinstance(error, ImportError) else ""
        words = (str(error).splitlines() or [""])[0]
        notice(f"not attached: {type(error).__name__}: {words}.{advice} Training goes on unobserved.")
        leave_mark("told")
    return None


def run_hidden() -> None:
    """Run the sitecustomize that would have been run without us, if there is one."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != FOLDER]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    try:
        run_hidden()
    finally:
        try:
            start_watching()
        except Exception as error:
            notice(f"cannot watch this Python: {error!r}")
