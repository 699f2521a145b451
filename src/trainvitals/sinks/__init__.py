"""Sinks: where records go. Each is a callable that takes a record; none of them may raise into training."""
