"""The modules that the five scripts use. Nothing here imports train, sample or tools."""
