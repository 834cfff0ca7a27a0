"""The front door: public API, limits, image codec. Never imports torch."""
