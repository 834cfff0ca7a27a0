"""Steploom: the SDK, the command line and the local supervisor."""
