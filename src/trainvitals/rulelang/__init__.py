"""The rule language: strict YAML, typed expressions, incremental windows. See rules/README.md."""
