"""Moderators, the policy that turns scores into labels and actions, and the training of the embedded head."""
