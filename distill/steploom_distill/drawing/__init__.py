"""Batched vector drawing of avatar scenes with torch."""
