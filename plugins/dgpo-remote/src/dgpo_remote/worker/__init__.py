"""A reward in processes of its own."""
