"""Take token files that another tool wrote as they are, with indexes beside them."""
