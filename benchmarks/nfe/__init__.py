"""NFE against error: every ODE solver of fmkit on exact fields, `python -m benchmarks.nfe`.

problems -> measure -> results (rows in a table, and what is concluded from them) -> page, plot
"""
