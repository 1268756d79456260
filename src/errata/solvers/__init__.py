"""What several methods compute: values, changes over several layers, second moments, merges,
trained adapters.
"""
