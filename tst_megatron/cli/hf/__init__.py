"""Commands for Hugging Face folders: ``models`` makes them, ``evaluate`` measures them."""
