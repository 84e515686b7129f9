"""The notebooks' own content: graders of exercises, symptoms and their cures, figures of single notebooks.

Only notebooks import it. No torch here but in `symptoms`.
"""
