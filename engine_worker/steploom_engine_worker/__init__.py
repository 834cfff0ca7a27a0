"""One process per device: slots, sampler, pipeline stages, engines."""
