"""Decide the order in which a run reads its tokens: every sample's place by arithmetic."""
