"""Remote rewards: in worker processes and on other machines."""
