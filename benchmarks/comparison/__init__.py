"""The comparison with other runtimes, see ../compare.py. What runs in the peers' environment imports nothing here."""
