"""A run in the browser, while it trains and afterwards: `server` answers what ``page/`` asks.

It reads the run directory and nothing else, and expects it to change at any time.
"""
