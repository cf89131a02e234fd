"""The machinery that the five scripts stand on. Nothing here imports train, sample or tools."""
