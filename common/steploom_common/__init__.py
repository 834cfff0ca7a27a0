"""What gateway, batcher and engine worker share: settings, errors, shared memory, guidance. Never imports torch."""
