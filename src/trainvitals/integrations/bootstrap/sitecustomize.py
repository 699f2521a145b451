"""What Python imports at its start in every process below ``trainvitals run``: watch for a trainer, touch nothing else.

`site` imports ``sitecustomize`` from the first folder of ``PYTHONPATH`` that has one, which is this folder. A sitecustomize
that this one hides is run first, as if we were not there. Then one finder waits for the module of a known trainer to be
imported and wraps the method that starts training, so that `trainvitals.integrations.autoattach` sees the trainer before its
first step. Nothing of trainvitals and nothing heavy is imported until a training really starts, and no error of ours leaves
this file. It must run in any Python 3.
"""

import functools
import importlib.machinery
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
TRAINERS = {
    "transformers.trainer": ("Trainer", "train"),
    "lightning.pytorch.trainer.trainer": ("Trainer", "fit"),
    "pytorch_lightning.trainer.trainer": ("Trainer", "fit"),
}
"""Module, class and the method that trains. Subclasses with a method of their own (TRL's PPO) are wrapped as they are made."""
MARK = "_trainvitals_run_saw_it"


def notice(text):
    """One line on stderr."""
    sys.stderr.write("[trainvitals] " + text + "\n")


def start_watching():
    """Put the finder in place, and leave a mark for ``trainvitals run`` that this Python could be looked into."""
    if "TRAINVITALS_RUN" not in os.environ:
        return  # PYTHONPATH was passed on, what to do was not
    sys.meta_path.insert(0, Finder())
    folder = os.environ.get("TRAINVITALS_RUN_FOLDER", "")
    if os.path.isdir(folder):  # not on another machine
        with open(os.path.join(folder, "python"), "a"):
            pass


class Finder:
    """A path finder that finds nothing itself: it lets the others find a trainer's module and is called once it has run."""

    def find_spec(self, name, path=None, target=None):
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
                    notice("cannot watch %s: %r" % (name, error))
                return spec
        return None


def watch(loader, cls, method):
    """Have `loader` wrap ``cls.method`` when it has executed its module."""
    execute = loader.exec_module

    def exec_module(module):
        execute(module)
        try:
            wrap(getattr(module, cls), method)
        except Exception as error:
            notice("cannot wrap %s.%s: %r. Training goes on unobserved." % (cls, method, error))

    loader.exec_module = exec_module


def wrap(cls, method):
    """Wrap the training method of a class and of every subclass that defines its own."""
    own = vars(cls).get("__init_subclass__")

    def init_subclass(sub, **kwargs):
        if own is not None:
            own.__func__(sub, **kwargs)
        else:
            super(cls, sub).__init_subclass__(**kwargs)
        if method in vars(sub):
            _wrap_one(sub, method)

    _wrap_one(cls, method)
    cls.__init_subclass__ = classmethod(init_subclass)


def _wrap_one(cls, method):
    original = vars(cls)[method]

    @functools.wraps(original)
    def train(self, *args, **kwargs):
        failed = None if getattr(self, MARK, False) else before(self)
        if failed is None:
            return original(self, *args, **kwargs)
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            failed(error)
            raise

    setattr(cls, method, train)


def before(trainer):
    """Attach to a trainer that is about to train for the first time; what to call if its training ends with an exception."""
    try:
        setattr(trainer, MARK, True)
        from trainvitals.integrations.autoattach import before_training

        return before_training(trainer)
    except ImportError as error:
        notice("not attached: %s. Is trainvitals installed for %s? Training goes on unobserved." % (error, sys.executable))
    except Exception as error:
        notice("not attached: %s: %s. Training goes on unobserved." % (type(error).__name__, error))
    return None


def run_hidden():
    """Run the sitecustomize that would have been run without us, if there is one."""
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != FOLDER]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
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
            notice("cannot watch this Python: %r" % (error,))
