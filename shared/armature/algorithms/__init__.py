"""The mathematics, on torch and the standard library.

One module per idea, with its paper, formula and symbols; that is why the folder holds more than a dozen.
"""
