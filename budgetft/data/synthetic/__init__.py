"""Made-up street scenes: a drawn sample, and a copy of the WTS data in its own tree and schemas. Above ``wts``, never below."""
