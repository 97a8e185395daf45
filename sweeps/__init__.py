"""Cells → plan → tasks → store: runs a study as one tree of training states."""
