"""The stages: one module and one sub-command each."""
