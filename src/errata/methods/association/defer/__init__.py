"""DEFER: a gate and a small model beside one layer (after SERAC, as in Hartvigsen et al., NeurIPS
2023).
"""
