"""The words of a text, and the names it mentions, by the rules of Unicode. Nothing here knows a
model.
"""
