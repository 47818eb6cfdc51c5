"""Secure aggregation, nexus-sa/1: the server learns the sum over a cohort, and nothing else about any site."""
