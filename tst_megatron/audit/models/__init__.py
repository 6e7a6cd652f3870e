"""The models: opened one at a time, checked, and asked for the probability of each token."""
