"""Rewards elsewhere: in processes of their own, and on other machines."""
