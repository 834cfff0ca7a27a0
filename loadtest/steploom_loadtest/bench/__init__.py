"""`make bench`: what the service gives on this machine, each figure beside its baseline or its bar."""
