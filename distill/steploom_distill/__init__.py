"""Data, training and evaluation of Steploom's embedded image editing model."""
