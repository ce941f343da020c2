"""The configuration: its sections by concern, and the tree that they form.

A docstring stands under each field. What a field changes (`affect_rl.section.Affects`) stands beside it, where that
differs from its section. Code receives the section it needs, never the whole tree.
"""
