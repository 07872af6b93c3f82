"""Whole experiments, built from the other folders; none of them imports this one."""
