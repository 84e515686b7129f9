"""What the notebooks use beside the library: pictures, charts, live curves, widgets. Import its modules one by one.

Importing this package imports neither torch nor plotly.
"""
