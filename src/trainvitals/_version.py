"""The version, in the one place that pyproject.toml is checked against."""

__version__ = "0.1.0"
