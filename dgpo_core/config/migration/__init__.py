"""Files and run directories of earlier versions of dgpo: how they are recognized, refused and rewritten."""
