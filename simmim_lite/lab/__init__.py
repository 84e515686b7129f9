"""What the notebooks use beside the library. Its modules are imported one by one: here is neither torch nor plotly."""
