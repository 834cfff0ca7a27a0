"""Steploom beside its peers: every server gets the same model, the same load and the same checks of its answers."""
