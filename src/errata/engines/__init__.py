"""Edits in other engines: exported once, found by words and token ids, said in the logits.

`exporting.py` writes a folder, `processor.py` reads it with numpy alone, and a thin adapter for
each engine calls the processor.
"""
