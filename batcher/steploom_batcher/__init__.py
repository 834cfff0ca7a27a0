"""Which rows run in which tick: the pure scheduler, its asyncio driver and its service. Never imports torch."""
