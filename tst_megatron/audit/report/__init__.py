"""An audit for people and scripts: a terminal, one HTML page, JSON."""
