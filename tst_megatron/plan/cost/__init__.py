"""What a run takes: ``model.py`` counts on the recipe, ``machine.py`` knows GPUs, MFU, prices."""
