"""Finds the rules and schemas: inside an installed package, or in the checkout of an editable install."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    installed = _HERE / "_data" / name
    if installed.is_dir():
        return installed
    checkout = _HERE.parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    msg = f"the folder {name!r} of trainvitals is missing: neither {installed} nor {checkout / name} exists; reinstall the package"
    raise FileNotFoundError(msg)


def rules_folder() -> Path:
    """Folder with ``stable/`` and ``experimental/``.

    Raises:
        FileNotFoundError: If the installation is damaged.
    """
    return _folder("rules")


def schemas_folder() -> Path:
    """Folder with the ``*.schema.json`` files.

    Raises:
        FileNotFoundError: If the installation is damaged.
    """
    return _folder("schemas")
