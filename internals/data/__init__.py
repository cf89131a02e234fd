"""What only prepare.py needs: reading text, cutting it into units, and writing bins."""
